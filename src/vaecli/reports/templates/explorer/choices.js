/* What is chosen around the map: its axes, a label, and whether decoded images lie over it. */
import { element, number } from "./chart.js";
import { colourOf } from "./landscape.js";
import { imageData, seenSize } from "./pixels.js";

/* Let the two axes be chosen: the latent dimensions by their KL, or the principal components. */
export function chooseAxes({ model, latent }, state) {
  const n = model.latent_dim;
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
  let before = selects.map((select) => select.value);
  const choose = () => {
    if (n > 1 && selects[0].value === selects[1].value)
      // the other takes the dimension that was left
      selects.forEach((select, k) => select.value === before[k] && (select.value = before[1 - k]));
    before = selects.map((select) => select.value);
    const byComponents = kind.value === "components";
    selects.forEach((select) => (select.parentElement.hidden = byComponents));
    state.set({ axes: byComponents ? "components" : selects.map((select) => Number(select.value)), pictures: null });
  };
  [kind, ...selects].forEach((select) => select.addEventListener("change", choose));
  if (n === 1) selects[1].parentElement.hidden = true;
}

/* Show the labels; a press leaves one alone on the map. */
export function showLegend({ images }, state) {
  const legend = document.getElementById("legend");
  const labels = images.labels && [...new Set(images.labels)].sort((a, b) => a - b);
  for (const label of labels ?? []) {
    const button = element(
      "button",
      { type: "button", "aria-pressed": "false", "aria-label": `only label ${label}` },
      String(label),
    );
    button.style.setProperty("--colour", colourOf(label));
    button.addEventListener("click", () => state.set({ label: state.get("label") === label ? null : label }));
    state.watch(["label"], () => button.setAttribute("aria-pressed", String(state.get("label") === label)));
    legend.append(button);
  }
}

/* Lay decoded images over the map, some in every frame; they follow what of z the plane does not show. */
export function showPictures({ model }, state, viewNow) {
  const button = document.getElementById("pictures");
  const side = 40;
  button.addEventListener("click", () => {
    if (state.get("pictures")) state.set({ pictures: null });
    else decodeAll({ cells: grid(), decoded: 0, ...beside() });
  });
  state.watch(["pictures"], () => button.setAttribute("aria-pressed", String(Boolean(state.get("pictures")))));
  state.watch(["z"], () => {
    const pictures = state.get("pictures");
    const now = beside();
    if (pictures && now.origin.some((value, i) => Math.abs(value - pictures.origin[i]) > 1e-3))
      decodeAll({ ...pictures, decoded: 0, ...now });
  });

  /* Return z without what the plane shows of it. */
  function beside() {
    return { origin: state.get("plane").move(state.get("z"), [0, 0]) };
  }

  function grid() {
    const { limits, scale } = viewNow();
    const size = side / scale;
    const cells = [];
    for (let y = limits[1][1] - size / 2; y + size / 2 > limits[1][0]; y -= size)
      for (let x = limits[0][0] + size / 2; x - size / 2 < limits[0][1]; x += size)
        cells.push({
          place: [x, y],
          size,
          picture: Object.assign(document.createElement("canvas"), seenSize(model.shape)),
        });
    return cells;
  }

  function decodeAll(pictures) {
    state.set({ pictures });
    requestAnimationFrame(function some() {
      if (state.get("pictures") !== pictures) return;
      for (
        const until = performance.now() + 20;
        pictures.decoded < pictures.cells.length && performance.now() < until;
        pictures.decoded++
      ) {
        const { place, picture } = pictures.cells[pictures.decoded];
        const mean = model.decode(state.get("plane").move(pictures.origin, place)).mean();
        picture.getContext("2d").putImageData(imageData(mean, model.shape), 0, 0);
      }
      state.set({ pictures });
      if (pictures.decoded < pictures.cells.length) requestAnimationFrame(some);
    });
  }
}
