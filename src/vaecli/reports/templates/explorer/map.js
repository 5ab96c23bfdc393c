/* The map: posterior means of images in a plane of the latent space, in which the current z is moved. */
import { row } from "./arrays.js";
import { number } from "./chart.js";
import { chooseAxes, showLegend, showPictures } from "./choices.js";
import { drawLandscape } from "./landscape.js";
import { paint } from "./pixels.js";
import { fit, planeOf, spread } from "./plane.js";

const NEAR = 12; // pixels within which a pointer means a point
const STEP = 0.1;

/* Show the map, and return a function to how it lies on its canvas. */
export function showMap(page, state) {
  const { model, images } = page;
  const canvas = document.getElementById("map");
  const box = canvas.parentElement;
  const tooltip = document.getElementById("tooltip");
  const status = document.getElementById("status");
  const context = canvas.getContext("2d");
  const still = document.createElement("canvas");
  let view = null; // of the plane: where its places are on the canvas
  let hovered = null;
  let pressed = null;
  let isDragged = false;

  chooseAxes(page, state);
  showLegend(page, state);
  state.derive("plane", ["axes"], () => planeOf(page, state.get("axes")));
  state.derive("places", ["plane"], () =>
    Array.from({ length: images.n }, (_, i) => state.get("plane").project(row(images.mean, i))),
  );
  state.watch(["places", "size", "theme", "label", "pictures"], () => {
    view = fit(state.get("places"), box.clientWidth, box.clientHeight);
    prepare(still);
    drawLandscape(still.getContext("2d"), page, state, view, colours());
  });
  state.watch(["places", "size", "theme", "label", "pictures", "z", "selected", "pins", "drawn", "hovered"], drawAll);
  new ResizeObserver(() => state.set({ size: box.clientWidth })).observe(box);

  /* Draw the still part, and on it what moves: z, the pins and the line between them, and the drawing. */
  function drawAll() {
    const colour = colours();
    prepare(canvas);
    context.drawImage(still, 0, 0, view.width, view.height);
    const plane = state.get("plane");
    const at = (z) => view.toCanvas(plane.project(z));
    const { a, b } = state.get("pins");
    const ends = [at(a), at(b)];
    context.strokeStyle = colour("--ink");
    context.lineWidth = 1;
    context.globalAlpha = 0.45;
    context.beginPath();
    context.moveTo(...ends[0]);
    context.lineTo(...ends[1]);
    context.stroke();
    context.globalAlpha = 1;
    ends.forEach((end, i) => drawFlag(end, "AB"[i], colour));
    const drawn = state.get("drawn");
    const q = selectedPosterior();
    if (drawn) drawDot(at(drawn.q.mean), colour);
    if (q)
      drawEllipse(
        at(q.mean),
        plane.axes.map((axis) => spread(axis, q.stddev) * view.scale),
        colour,
      );
    const [x, y] = at(state.get("z"));
    context.strokeStyle = colour("--accent");
    context.globalAlpha = 0.35;
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, view.height);
    context.moveTo(0, y);
    context.lineTo(view.width, y);
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

  /* Clear a canvas and give it the size of the map, with units of the page's pixels. */
  function prepare(target) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [view.width, view.height].map((size) => Math.round(size * ratio));
    if (target.width !== width || target.height !== height) Object.assign(target, { width, height });
    const pen = target.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, view.width, view.height);
  }

  /* Return a function from the names of the style's colours to what they are in this theme. */
  function colours() {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(name).trim();
  }

  /* Return the image whose mean is nearest to a point of the canvas, if it is near. */
  function nearestTo(x, y, within) {
    let best = null;
    let least = within ** 2;
    const only = state.get("label");
    state.get("places").forEach((place, i) => {
      if (only !== null && images.labels[i] !== only) return;
      const [px, py] = view.toCanvas(place);
      const distance = (px - x) ** 2 + (py - y) ** 2;
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
    const z = state.get("z");
    const plane = state.get("plane");
    const place = plane.project(z);
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
      const plane = state.get("plane");
      const [x, y] = plane.project(state.get("z"));
      const { nearest } = state.values;
      const label = images.labels ? `, label ${images.labels[nearest.index]}` : "";
      status.textContent = `${plane.names[0]} ${number(x)}, ${plane.names[1]} ${number(y)}; nearest is image ${nearest.index}${label}`;
    });
  }

  showPictures(page, state, () => view);
  return () => view;
}

export function selectImage({ images }, state, index) {
  state.set({ z: Float32Array.from(row(images.mean, index)), selected: index });
}
