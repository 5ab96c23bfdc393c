/* What stays on the map as z moves: the grid, the prior, decoded images, and the posterior means by their labels. */
import { number } from "./chart.js";

/* Ten colours that stay apart for the colour-blind (Petroff 2021, arXiv 2107.02270); labels are written out as well. */
const COLOURS = [
  "#3f90da",
  "#ffa90e",
  "#bd1f01",
  "#94a4a2",
  "#832db6",
  "#a96b59",
  "#e76300",
  "#b9ac70",
  "#717581",
  "#92dadd",
];
const MAX_LABELS = 60; // that are written on the map
export function colourOf(label) {
  return label === null ? COLOURS[0] : COLOURS[((label % COLOURS.length) + COLOURS.length) % COLOURS.length];
}

/* Draw it all with a pen whose units are pixels of the page; `colour` returns a colour of the style by its name. */
export function drawLandscape(pen, page, state, view, colour) {
  const pictures = state.get("pictures");
  if (pictures) drawPictures(pen, pictures, view);
  drawGrid(pen, view, colour, pictures !== null);
  if (page.model.prior.isStandard)
    drawPrior(
      pen,
      view.toCanvas(state.get("plane").project(new Float32Array(page.model.latent_dim))),
      view.scale,
      colour,
    );
  drawPoints(pen, page.images, state, view, colour);
}

function drawGrid(pen, { limits, step, toCanvas, width, height }, colour, isCovered) {
  pen.font = "12px system-ui, sans-serif";
  for (const k of [0, 1]) {
    const [low, high] = limits[k];
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
      const [x, y] = toCanvas(k === 0 ? [tick, 0] : [0, tick]);
      pen.strokeStyle = colour(Math.abs(tick) < 1e-9 ? "--axis" : "--line");
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(...(k === 0 ? [x, 0] : [0, y]));
      pen.lineTo(...(k === 0 ? [x, height] : [width, y]));
      if (!isCovered) pen.stroke();
      pen.fillStyle = colour("--soft");
      pen.textAlign = k === 0 ? "center" : "left";
      const place = k === 0 ? [x, height - 7] : [6, y - 4];
      write(pen, number(tick, step < 1 ? 1 : 0), place, isCovered && colour("--card"));
    }
  }
}

/* Draw one and two deviations of a standard normal around the origin. */
function drawPrior(pen, [x, y], scale, colour) {
  pen.strokeStyle = colour("--soft");
  pen.lineWidth = 1;
  pen.setLineDash([3, 5]);
  for (const radius of [1, 2]) {
    pen.beginPath();
    pen.arc(x, y, radius * scale, 0, 2 * Math.PI);
    pen.stroke();
  }
  pen.setLineDash([]);
}

function drawPoints(pen, images, state, view, colour) {
  const only = state.get("label");
  const radius = images.n > 500 ? 2.6 : 4;
  const byLabel = new Map();
  state.get("places").forEach((place, i) => {
    const label = images.labels ? images.labels[i] : null;
    const [x, y] = view.toCanvas(place);
    pen.globalAlpha = only !== null && only !== label ? 0.07 : state.get("pictures") ? 0.9 : 0.75;
    pen.fillStyle = colourOf(label);
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
    if (!byLabel.has(label)) byLabel.set(label, []);
    byLabel.get(label).push([x, y]);
  });
  pen.globalAlpha = 1;
  if (!images.labels || byLabel.size > MAX_LABELS) return;
  pen.font = "600 15px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillStyle = colour("--ink");
  for (const [label, points] of byLabel) {
    const [x, y] = [0, 1].map((k) => median(points.map((point) => point[k])));
    if (only === null || only === label) write(pen, String(label), [x, y + 5], colour("--card"));
  }
}

function drawPictures(pen, { cells }, view) {
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = 0.85;
  for (const { picture, place, size } of cells) {
    const [x, y] = view.toCanvas(place);
    const side = size * view.scale;
    pen.drawImage(picture, x - side / 2, y - side / 2, side, side);
  }
  pen.globalAlpha = 1;
}

/* Write a text, with an edge that keeps it apart from what is under it. */
function write(pen, text, [x, y], edge) {
  if (edge) {
    pen.strokeStyle = edge;
    pen.lineWidth = 4;
    pen.lineJoin = "round";
    pen.strokeText(text, x, y);
  }
  pen.fillText(text, x, y);
}

function median(values) {
  return values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
}
