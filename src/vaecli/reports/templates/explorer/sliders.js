/* A slider for every latent dimension, from the one that says most; those that say nothing are marked as collapsed. */
import { count, element, number } from "./chart.js";

const MAX_SLIDERS = 100;

export function showSliders({ model, images, latent }, state) {
  const dimensions = latent.dimensions.slice(0, MAX_SLIDERS);
  const most = Math.max(...dimensions.map(({ kl }) => kl ?? 0), 1e-9);
  const active = document.getElementById("active");
  const collapsed = document.getElementById("collapsed");
  const n_collapsed = latent.dimensions.filter(({ is_active }) => !is_active).length;
  collapsed.hidden = n_collapsed === 0;
  collapsed.open = n_collapsed === latent.dimensions.length;
  collapsed.querySelector("summary").textContent = count(n_collapsed, "collapsed dimension");
  document.getElementById("kl-head").textContent = latent.dimensions[0].kl === null ? "" : "KL, nats";
  document.getElementById("order").textContent =
    (latent.dimensions[0].kl === null
      ? "Ordered by the variance of the posterior mean: with this posterior and prior the KL of a single dimension has no closed form."
      : "Ordered by KL(q(z|x) ‖ p(z)), the mean over the images.") +
    (latent.dimensions.length > MAX_SLIDERS ? ` The first ${MAX_SLIDERS} of ${latent.dimensions.length}.` : "");

  for (const { index, kl, is_active } of dimensions) {
    const limit = reach(images, index, model.latent_dim);
    const said = `z${index + 1}${kl === null ? "" : `, ${number(kl)} nats`}${is_active ? "" : ", collapsed"}`;
    const slider = element("input", {
      type: "range",
      min: -limit,
      max: limit,
      step: 0.01,
      "aria-label": said,
      "data-index": index,
    });
    const output = element("output", {});
    const name = element("span", { class: "name" }, "z", element("sub", {}, String(index + 1)));
    const bar = element("span", { class: "kl" }, ...(kl === null ? [] : [element("i", {}), number(kl)]));
    if (kl !== null) bar.firstChild.style.width = `${(30 * kl) / most}px`;
    (is_active ? active : collapsed).append(element("div", { class: "dimension" }, name, slider, output, bar));
    slider.addEventListener("input", () => {
      const z = Float32Array.from(state.get("z"));
      z[index] = Number(slider.value);
      state.set({ z, selected: null });
    });
    state.watch(["z"], () => {
      const value = state.get("z")[index];
      if (Math.abs(Number(slider.value) - value) > 0.005) slider.value = value;
      slider.setAttribute("aria-valuetext", number(value));
      output.textContent = number(value);
    });
  }
}

/* Return how far a slider goes: the prior's bulk, and beyond every mean. */
function reach({ n, mean }, index, latent_dim) {
  let furthest = 3;
  for (let i = 0; i < n; i++) furthest = Math.max(furthest, Math.abs(mean[i * latent_dim + index]));
  return Math.ceil(2 * furthest) / 2;
}
