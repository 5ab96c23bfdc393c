/* The map: posterior means of images in a plane of the latent space, in which the current z is moved. */
import { row } from "./arrays.js";
import { element, number } from "./chart.js";
import { imageData, paint, seenSize } from "./pixels.js";

/* Ten colours that stay apart for the colour-blind (Petroff 2021, arXiv 2107.02270); labels are written out as well. */
const COLOURS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"];
const NEAR = 12; // pixels within which a pointer means a point
const STEP = 0.1;

/* A plane through the latent space, spanned by two orthonormal axes from an origin. */
export class Plane {
  constructor(origin, axes, names) {
    Object.assign(this, { origin, axes, names });
  }

  project(z) {
    return this.axes.map((axis) => axis.reduce((sum, a, i) => sum + a * (z[i] - this.origin[i]), 0));
  }

  /* Move z within the plane to a place, and leave alone what the plane does not show of it. */
  move(z, place) {
    const now = this.project(z);
    return Float32Array.from(z, (value, i) => value + this.axes.reduce((sum, axis, k) => sum + axis[i] * (place[k] - now[k]), 0));
  }
}

export function colourOf(label) {
  return label === null ? COLOURS[0] : COLOURS[((label % COLOURS.length) + COLOURS.length) % COLOURS.length];
}

/* Return the plane of two latent dimensions, or of the two principal components of the means. */
function planeOf({ model, latent }, choice) {
  const n = model.latent_dim;
  if (choice === "components")
    return new Plane(latent.centre, [0, 1].map((i) => row(latent.components, i)), ["1st component", "2nd component"]);
  const axes = choice.map((index) => Float32Array.from({ length: n }, (_, i) => Number(i === index)));
  return new Plane(new Float32Array(n), axes, choice.map((index) => `z${index + 1}`));
}

/* Show the map, and return a function to how it lies on its canvas. */
export function showMap(page, state) {
  const { model, images, latent } = page;
  const canvas = document.getElementById("map"), box = canvas.parentElement;
  const tooltip = document.getElementById("tooltip"), status = document.getElementById("status");
  const context = canvas.getContext("2d"), still = document.createElement("canvas");
  let view = null; // of the plane: where its places are on the canvas
  let hovered = null, pressed = null, isDragged = false;

  chooseAxes(page, state);
  const labels = images.labels && [...new Set(images.labels)].sort((a, b) => a - b);
  showLegend(labels, state);
  state.derive("plane", ["axes"], () => planeOf(page, state.get("axes")));
  state.derive("places", ["plane"], () =>
    Array.from({ length: images.n }, (_, i) => state.get("plane").project(row(images.mean, i))),
  );
  state.watch(["places", "size", "theme", "label", "pictures"], () => {
    view = fit(state.get("places"), box.clientWidth, box.clientHeight);
    drawStill();
  });
  state.watch(["places", "size", "theme", "label", "pictures", "z", "selected", "pins", "drawn", "hovered"], drawAll);
  new ResizeObserver(() => state.set({ size: box.clientWidth })).observe(box);

  /* Draw what stays as z moves: the grid, the prior's deviations, the points and their labels. */
  function drawStill() {
    const { ratio, width, height } = prepare(still);
    const pen = still.getContext("2d"), css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const pictures = state.get("pictures");
    if (pictures) drawPictures(pen, pictures);
    pen.font = "12px system-ui, sans-serif";
    pen.lineWidth = 1;
    const { step } = view, digits = step < 1 ? 1 : 0;
    for (const k of [0, 1]) {
      const [low, high] = view.limits[k];
      for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
        const [x, y] = view.toCanvas(k === 0 ? [tick, 0] : [0, tick]);
        pen.strokeStyle = colour(Math.abs(tick) < 1e-9 ? "--axis" : "--line");
        pen.globalAlpha = pictures ? 0 : 1;
        pen.beginPath();
        if (k === 0) pen.moveTo(x, 0), pen.lineTo(x, height);
        else pen.moveTo(0, y), pen.lineTo(width, y);
        pen.stroke();
        pen.globalAlpha = 1;
        pen.fillStyle = colour("--soft");
        pen.textAlign = k === 0 ? "center" : "left";
        write(pen, number(tick, digits), k === 0 ? x : 6, k === 0 ? height - 7 : y - 4, pictures && colour("--card"));
      }
    }
    if (model.prior.isStandard) {
      const [x, y] = view.toCanvas(state.get("plane").project(new Float32Array(model.latent_dim)));
      pen.strokeStyle = colour("--soft");
      pen.setLineDash([3, 5]);
      for (const radius of [1, 2]) {
        pen.beginPath();
        pen.arc(x, y, radius * view.scale, 0, 2 * Math.PI);
        pen.stroke();
      }
      pen.setLineDash([]);
    }
    drawPoints(pen, colour, pictures ? 0.9 : 0.75);
  }

  function drawPoints(pen, colour, opacity) {
    const places = state.get("places"), only = state.get("label");
    const radius = images.n > 500 ? 2.6 : 4;
    const byLabel = new Map();
    places.forEach((place, i) => {
      const label = images.labels ? images.labels[i] : null, [x, y] = view.toCanvas(place);
      pen.globalAlpha = only === null || only === label ? opacity : 0.07;
      pen.fillStyle = colourOf(label);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.fill();
      byLabel.set(label, [...(byLabel.get(label) ?? []), [x, y]]);
    });
    pen.globalAlpha = 1;
    if (!labels || labels.length > 60) return;
    pen.font = "600 15px system-ui, sans-serif";
    pen.textAlign = "center";
    for (const [label, points] of byLabel) {
      if (only !== null && only !== label) continue;
      const [x, y] = [0, 1].map((k) => median(points.map((point) => point[k])));
      pen.fillStyle = colour("--ink");
      write(pen, String(label), x, y + 5, colour("--card"));
    }
  }

  function drawPictures(pen, { cells }) {
    for (const { picture, place, size } of cells) {
      const [x, y] = view.toCanvas(place), side = size * view.scale;
      pen.imageSmoothingEnabled = false;
      pen.globalAlpha = 0.85;
      pen.drawImage(picture, x - side / 2, y - side / 2, side, side);
    }
    pen.globalAlpha = 1;
  }

  /* Draw the still part, and on it what moves: z, the pins and the line between them, and the drawing. */
  function drawAll() {
    const { ratio, width, height } = prepare(canvas);
    const css = getComputedStyle(document.documentElement), colour = (name) => css.getPropertyValue(name).trim();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(still, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const plane = state.get("plane"), at = (z) => view.toCanvas(plane.project(z));
    const { a, b } = state.get("pins"), ends = [at(a), at(b)];
    context.strokeStyle = colour("--ink");
    context.lineWidth = 1;
    context.globalAlpha = 0.45;
    context.beginPath();
    context.moveTo(...ends[0]);
    context.lineTo(...ends[1]);
    context.stroke();
    context.globalAlpha = 1;
    ends.forEach((end, i) => drawFlag(end, "AB"[i], colour));
    const drawn = state.get("drawn"), q = selectedPosterior();
    if (drawn) drawDot(at(drawn.q.mean), colour);
    if (q) drawEllipse(at(q.mean), plane.axes.map((axis) => spread(axis, q.stddev) * view.scale), colour);
    const [x, y] = at(state.get("z"));
    context.strokeStyle = colour("--accent");
    context.globalAlpha = 0.35;
    context.beginPath();
    context.moveTo(x, 0), context.lineTo(x, height);
    context.moveTo(0, y), context.lineTo(width, y);
    context.stroke();
    context.globalAlpha = 1;
    ring(x, y, 8, colour("--card"), 5);
    ring(x, y, 8, colour("--accent"), 2.5);
    if (hovered !== null) {
      const [hx, hy] = view.toCanvas(state.get("places")[hovered]);
      ring(hx, hy, 5, colour("--ink"), 2);
    }
  }

  /* Return q(z|x) of what z is the mean of, if it is one. */
  function selectedPosterior() {
    const selected = state.get("selected");
    if (selected === "drawing") return state.get("drawn")?.q ?? null;
    return selected === null ? null : { mean: row(images.mean, selected), stddev: row(images.stddev, selected) };
  }

  function drawDot([x, y], colour) {
    context.fillStyle = colour("--warm");
    context.beginPath();
    context.arc(x, y, 4.5, 0, 2 * Math.PI);
    context.fill();
  }

  function ring(x, y, radius, style, width) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }

  function drawFlag([x, y], letter, colour) {
    context.fillStyle = colour("--ink");
    context.beginPath();
    context.arc(x, y, 8.5, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = colour("--card");
    context.font = "600 11px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText(letter, x, y + 4);
  }

  function drawEllipse([x, y], [rx, ry], colour) {
    context.strokeStyle = colour("--accent");
    context.lineWidth = 1.5;
    context.beginPath();
    context.ellipse(x, y, rx, ry, 0, 0, 2 * Math.PI);
    context.stroke();
  }

  function prepare(target) {
    const ratio = window.devicePixelRatio || 1, [width, height] = [box.clientWidth, box.clientHeight];
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (target.width !== w || target.height !== h) Object.assign(target, { width: w, height: h });
    return { ratio, width, height };
  }

  /* Return the image whose mean is nearest to a point of the canvas, if it is near. */
  function nearestTo(x, y, within) {
    let best = null, least = within ** 2;
    const only = state.get("label");
    state.get("places").forEach((place, i) => {
      if (only !== null && images.labels[i] !== only) return;
      const [px, py] = view.toCanvas(place), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    });
    return best;
  }

  function hover(found, x, y) {
    if (found === hovered && found === null) return;
    hovered = found;
    state.set({ hovered: found });
    tooltip.hidden = found === null;
    if (found === null) return;
    paint(tooltip.querySelector("canvas"), row(images.pixels, found), model.shape, 1 / 255);
    const label = images.labels ? `label ${images.labels[found]}, ` : "";
    tooltip.querySelector("span").textContent = `${label}ELBO ${number(images.elbo[found], 1)}`;
    const right = x > box.clientWidth / 2;
    tooltip.style.left = right ? "" : `${x + 16}px`;
    tooltip.style.right = right ? `${box.clientWidth - x + 16}px` : "";
    tooltip.style.top = `${Math.min(Math.max(y - 40, 4), box.clientHeight - tooltip.offsetHeight - 4)}px`;
  }

  const placeOf = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  const moveTo = (x, y) =>
    state.set({ z: state.get("plane").move(state.get("z"), view.toPlane([x, y])), selected: null });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    [pressed, isDragged] = [placeOf(event), false];
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = placeOf(event);
    isDragged ||= pressed !== null && Math.hypot(x - pressed[0], y - pressed[1]) > 4;
    if (isDragged) moveTo(x, y);
    hover(pressed ? null : nearestTo(x, y, NEAR), x, y);
  });
  canvas.addEventListener("pointerup", () => {
    if (pressed && !isDragged) {
      const found = nearestTo(...pressed, NEAR);
      if (found === null) moveTo(...pressed);
      else selectImage(page, state, found);
    }
    [pressed, isDragged] = [null, false];
  });
  canvas.addEventListener("pointercancel", () => ([pressed, isDragged] = [null, false]));
  canvas.addEventListener("pointerleave", () => hover(null));

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  canvas.addEventListener("keydown", (event) => {
    const z = state.get("z"), plane = state.get("plane"), place = plane.project(z);
    if (ARROWS[event.key]) {
      const size = STEP * (event.shiftKey ? 5 : 1);
      const next = place.map((value, k) => value + size * ARROWS[event.key][k]);
      state.set({ z: plane.move(z, next), selected: null });
    } else if (event.key === "Enter") {
      const found = nearestTo(...view.toCanvas(place), Infinity);
      if (found !== null) selectImage(page, state, found);
    } else if (event.key === "Home") state.set({ z: new Float32Array(model.latent_dim), selected: null });
    else return;
    event.preventDefault();
    say();
  });

  /* Tell those who cannot see the map where z is. */
  function say() {
    requestAnimationFrame(() => {
      const plane = state.get("plane"), [x, y] = plane.project(state.get("z"));
      const { nearest } = state.values, label = images.labels ? `, label ${images.labels[nearest.index]}` : "";
      status.textContent = `${plane.names[0]} ${number(x)}, ${plane.names[1]} ${number(y)}; nearest is image ${nearest.index}${label}`;
    });
  }

  showPictures(page, state, () => view);
  return () => view;
}

export function selectImage({ images }, state, index) {
  state.set({ z: Float32Array.from(row(images.mean, index)), selected: index });
}

/* Write a text, with an edge that keeps it apart from what is under it. */
function write(pen, text, x, y, edge) {
  if (edge) {
    pen.strokeStyle = edge;
    pen.lineWidth = 4;
    pen.lineJoin = "round";
    pen.strokeText(text, x, y);
  }
  pen.fillText(text, x, y);
}

/* Return the deviation along an axis of independent ones along the dimensions. */
function spread(axis, stddev) {
  return Math.sqrt(axis.reduce((sum, a, i) => sum + (a * stddev[i]) ** 2, 0));
}

function median(values) {
  return values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

/* Return how a plane lies on a canvas: all but the outermost places in it, of the same scale on both axes. */
function fit(places, width, height) {
  const limits = [0, 1].map((k) => {
    const sorted = places.map((place) => place[k]).sort((a, b) => a - b);
    const beyond = Math.floor(sorted.length * 0.002);
    return [Math.min(sorted[beyond], -2.4), Math.max(sorted[sorted.length - 1 - beyond], 2.4)];
  });
  const margin = 28;
  const scale = Math.min(...[width, height].map((size, k) => (size - 2 * margin) / (limits[k][1] - limits[k][0])));
  const [cx, cy] = limits.map(([low, high]) => (low + high) / 2);
  const toCanvas = ([a, b]) => [width / 2 + (a - cx) * scale, height / 2 - (b - cy) * scale];
  const toPlane = ([x, y]) => [cx + (x - width / 2) / scale, cy - (y - height / 2) / scale];
  const shown = [[toPlane([0, 0])[0], toPlane([width, 0])[0]], [toPlane([0, height])[1], toPlane([0, 0])[1]]];
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000].find((size) => size * scale > 48) ?? 1e4;
  return { scale, toCanvas, toPlane, limits: shown, step };
}

/* Let the two axes be chosen: the latent dimensions by their KL, or the principal components. */
function chooseAxes({ model, latent }, state) {
  const selects = ["axis-x", "axis-y"].map((id) => document.getElementById(id));
  const kind = document.getElementById("axes-kind");
  for (const select of selects)
    for (const { index, kl, is_active } of latent.dimensions) {
      const said = kl === null ? "" : ` (${number(kl)})`;
      select.append(element("option", { value: index }, `z${index + 1}${said}${is_active ? "" : ", collapsed"}`));
    }
  const first = latent.dimensions.map(({ index }) => index);
  selects.forEach((select, i) => (select.value = String(first[Math.min(i, first.length - 1)])));
  kind.hidden = !latent.components;
  const choose = () => {
    const byComponents = kind.value === "components";
    selects.forEach((select) => (select.parentElement.hidden = byComponents));
    state.set({ axes: byComponents ? "components" : selects.map((select) => Number(select.value)), pictures: null });
  };
  [kind, ...selects].forEach((select) => select.addEventListener("change", choose));
  if (model.latent_dim === 1) selects[1].parentElement.hidden = true;
}

/* Show the labels; a press leaves one alone on the map. */
function showLegend(labels, state) {
  const legend = document.getElementById("legend");
  for (const label of labels ?? []) {
    const button = element("button", { type: "button", "aria-pressed": "false", "aria-label": `only label ${label}` }, String(label));
    button.style.setProperty("--colour", colourOf(label));
    button.addEventListener("click", () => state.set({ label: state.get("label") === label ? null : label }));
    state.watch(["label"], () => button.setAttribute("aria-pressed", String(state.get("label") === label)));
    legend.append(button);
  }
}

/* Lay decoded images over the map, some in every frame; they follow what of z the plane does not show. */
function showPictures({ model }, state, viewNow) {
  const button = document.getElementById("pictures"), side = 40;
  button.addEventListener("click", () => {
    if (state.get("pictures")) state.set({ pictures: null });
    else decodeAll({ cells: grid(), decoded: 0, ...beside() });
  });
  state.watch(["pictures"], () => button.setAttribute("aria-pressed", String(Boolean(state.get("pictures")))));
  state.watch(["z"], () => {
    const pictures = state.get("pictures"), now = beside();
    if (pictures && now.origin.some((value, i) => Math.abs(value - pictures.origin[i]) > 1e-3)) decodeAll({ ...pictures, decoded: 0, ...now });
  });

  /* Return z without what the plane shows of it. */
  function beside() {
    return { origin: state.get("plane").move(state.get("z"), [0, 0]) };
  }

  function grid() {
    const { limits, scale } = viewNow(), size = side / scale, cells = [];
    for (let y = limits[1][1] - size / 2; y + size / 2 > limits[1][0]; y -= size)
      for (let x = limits[0][0] + size / 2; x - size / 2 < limits[0][1]; x += size)
        cells.push({ place: [x, y], size, picture: Object.assign(document.createElement("canvas"), seenSize(model.shape)) });
    return cells;
  }

  function decodeAll(pictures) {
    state.set({ pictures });
    requestAnimationFrame(function some() {
      if (state.get("pictures") !== pictures) return;
      for (const until = performance.now() + 10; pictures.decoded < pictures.cells.length && performance.now() < until; pictures.decoded++) {
        const { place, picture } = pictures.cells[pictures.decoded];
        const mean = model.decode(state.get("plane").move(pictures.origin, place)).mean();
        picture.getContext("2d").putImageData(imageData(mean, model.shape), 0, 0);
      }
      state.set({ pictures });
      if (pictures.decoded < pictures.cells.length) requestAnimationFrame(some);
    });
  }
}
