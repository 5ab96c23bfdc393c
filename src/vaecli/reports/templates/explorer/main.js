/* The page: its numbers are unpacked, its state is made, and every view is shown. */
import { resolve, row, unpack } from "./arrays.js";
import { showDecoded } from "./decoded.js";
import { showDrawing } from "./drawing.js";
import { showMap } from "./map.js";
import { Model } from "./model.js";
import { showRun } from "./run.js";
import { showSliders } from "./sliders.js";
import { State } from "./state.js";
import { centre, rasterise } from "./strokes.js";

function useTheme(state) {
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const use = (isDark) => {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(isDark));
    state.set({ theme: isDark });
  };
  use(preferred.matches);
  preferred.addEventListener("change", () => use(preferred.matches));
  button.addEventListener("click", () => use(!state.get("theme")));
}

async function main() {
  const buffer = await unpack(document.getElementById("arrays").textContent);
  const content = resolve(JSON.parse(document.getElementById("content").textContent), buffer);
  const { images, latent, run } = content;
  const model = new Model(content.model);
  images.n = images.mean.shape[0];
  images.elbo = images.log_likelihood.map((value, i) => value - images.kl[i]);
  const page = { model, images, latent, run, size: document.documentElement.outerHTML.length };

  const other = images.labels
    ? Math.max(
        0,
        images.labels.findIndex((label) => label !== images.labels[0]),
      )
    : images.n - 1;
  const first = latent.dimensions.map(({ index }) => index);
  const state = new State({
    z: Float32Array.from(row(images.mean, 0)),
    show: "mean",
    draw: 1,
    selected: 0,
    drawn: null,
    bound: null,
    hovered: null,
    label: null,
    pictures: null,
    axes: [first[0], first[Math.min(1, first.length - 1)]],
    pins: { a: Float32Array.from(row(images.mean, 0)), b: Float32Array.from(row(images.mean, other)) },
    theme: false,
    size: 0,
  });
  useTheme(state);
  showDecoded(page, state);
  const view = showMap(page, state);
  showSliders(page, state);
  showDrawing(page, state);
  showRun(page);
  state.settle();
  document.documentElement.classList.add("ready");
  performance.mark("first-image");
  globalThis.explorer = { ...page, state, view, centre, rasterise }; // for the browser's console
}

main().catch((error) => {
  document.getElementById("failed").hidden = false;
  document.getElementById("failed").textContent = `This page could not be shown: ${error.message}`;
  throw error;
});
