/* The image that z decodes to, the test image nearest to z, and the way between two pinned points. */
import { row } from "./arrays.js";
import { number } from "./chart.js";
import { Random } from "./distributions.js";
import { paint } from "./pixels.js";

const FRAMES = 9;
const SECONDS = 4;

export function showDecoded(page, state) {
  const { model } = page;
  const canvas = document.getElementById("decoded");
  const caption = document.getElementById("decoded-caption");

  state.derive("likelihood", ["z"], () => model.decode(state.get("z")));
  state.watch(["likelihood", "show", "draw"], () => {
    const p = state.get("likelihood");
    const show = state.get("show");
    const values = show === "draw" ? p.draw(new Random(state.get("draw"))) : p[show]();
    const most = show === "stddev" ? values.reduce((high, value) => Math.max(high, value), 1e-9) : 1;
    paint(canvas, values, model.shape, 1 / most);
    caption.textContent = {
      mean: "The mean of p(x|z)",
      stddev: `The standard deviation of p(x|z); white is ${most < 0.01 ? most.toExponential(1) : number(most, 2)}`,
      draw: "A draw from p(x|z)",
    }[show];
    canvas.setAttribute("aria-label", caption.textContent);
  });
  for (const radio of document.querySelectorAll("input[name=show]"))
    radio.addEventListener("change", () => state.set({ show: radio.value }));

  showNearest(page, state);
  onClick("again", () => {
    document.getElementById("show-draw").checked = true;
    state.set({ show: "draw", draw: state.get("draw") + 1 });
  });
  onClick("reset", () => state.set({ z: new Float32Array(model.latent_dim), selected: null }));
  const random = new Random(performance.timeOrigin);
  onClick("sample", () => state.set({ z: model.prior.draw(random), selected: null }));
  showWay(page, state);
}

function onClick(id, act) {
  document.getElementById(id).addEventListener("click", act);
}

function showNearest({ model, images }, state) {
  const canvas = document.getElementById("nearest");
  const caption = document.getElementById("nearest-caption");
  state.derive("nearest", ["z"], () => {
    const z = state.get("z");
    let index = 0;
    let least = Infinity;
    for (let i = 0; i < images.n; i++) {
      let distance = 0;
      for (let k = 0, at = i * z.length; k < z.length && distance < least; k++)
        distance += (images.mean[at + k] - z[k]) ** 2;
      if (distance < least) [index, least] = [i, distance];
    }
    return { index, distance: Math.sqrt(least) };
  });
  let shown = null;
  state.watch(["nearest"], () => {
    const { index, distance } = state.get("nearest");
    if (index !== shown) paint(canvas, row(images.pixels, index), model.shape, 1 / 255);
    shown = index;
    const label = images.labels ? `, label ${images.labels[index]}` : "";
    caption.textContent =
      distance < 1e-6
        ? `${images.split} image${label}: z is its mean`
        : `Nearest ${images.split} image${label}, at distance ${number(distance)}`;
    canvas.setAttribute("aria-label", caption.textContent);
  });
}

/* Let two points be pinned, and z go the way between them. */
function showWay({ model }, state) {
  const way = document.getElementById("way");
  const play = document.getElementById("play");
  const strip = document.getElementById("strip");
  const between = (t) => {
    const { a, b } = state.get("pins");
    return a.map((value, i) => value + t * (b[i] - value));
  };
  const frames = Array.from({ length: FRAMES }, () => strip.appendChild(document.createElement("canvas")));
  state.watch(["pins"], () =>
    frames.forEach((frame, i) => paint(frame, model.decode(between(i / (FRAMES - 1))).mean(), model.shape)),
  );
  const go = (t) => {
    way.value = t;
    way.setAttribute("aria-valuetext", `${Math.round(100 * t)} % of the way from A to B`);
    state.set({ z: between(t), selected: null });
  };
  onClick("pin-a", () => state.set({ pins: { ...state.get("pins"), a: state.get("z") } }));
  onClick("pin-b", () => state.set({ pins: { ...state.get("pins"), b: state.get("z") } }));
  way.addEventListener("input", () => {
    stop();
    go(Number(way.value));
  });

  let began = null;
  const stop = () => {
    began = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  play.addEventListener("click", () => {
    if (began !== null) return stop();
    play.textContent = "Stop";
    play.setAttribute("aria-pressed", "true");
    const mine = (began = performance.now());
    requestAnimationFrame(function step(now) {
      if (began !== mine) return;
      const turns = Math.max(0, now - began) / (1000 * SECONDS); // to B and back, with rest at the ends
      go(0.5 - 0.5 * Math.cos(Math.PI * turns));
      requestAnimationFrame(step);
    });
  });
  for (const kind of ["pointerdown", "keydown"])
    document.addEventListener(kind, (event) => {
      if (event.target !== play && began !== null && event.target.closest?.("canvas, input, button")) stop();
    });
}
