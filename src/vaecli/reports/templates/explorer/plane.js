/* Planes through the latent space, and how they lie on a canvas. */
import { row } from "./arrays.js";

/* A plane through the latent space, spanned by two orthonormal axes from an origin; the second may be 0. */
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
    return Float32Array.from(
      z,
      (value, i) => value + this.axes.reduce((sum, axis, k) => sum + axis[i] * (place[k] - now[k]), 0),
    );
  }
}

/* Return the plane of two latent dimensions, or of the two principal components of the means. */
export function planeOf({ model, latent }, choice) {
  const n = model.latent_dim;
  if (choice === "components")
    return new Plane(
      latent.centre,
      [0, 1].map((i) => row(latent.components, i)),
      ["1st component", "2nd component"],
    );
  const axes = choice.map((index, k) =>
    Float32Array.from({ length: n }, (_, i) => Number(i === index && (k === 0 || index !== choice[0]))),
  ); // one dimension is a line
  return new Plane(
    new Float32Array(n),
    axes,
    choice.map((index) => `z${index + 1}`),
  );
}

/* Return how a plane lies on a canvas: all but the outermost places in it, of the same scale on both axes. */
export function fit(places, width, height) {
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
  const shown = [
    [toPlane([0, 0])[0], toPlane([width, 0])[0]],
    [toPlane([0, height])[1], toPlane([0, 0])[1]],
  ];
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000].find((size) => size * scale > 48) ?? 1e4;
  return { width, height, scale, toCanvas, toPlane, limits: shown, step };
}

/* Return the deviation along an axis of independent ones along the dimensions. */
export function spread(axis, stddev) {
  return Math.sqrt(axis.reduce((sum, a, i) => sum + (a * stddev[i]) ** 2, 0));
}
