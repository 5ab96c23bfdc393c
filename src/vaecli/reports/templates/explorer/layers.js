/* The layers of networks. Each takes its numbers and one flat example, and returns a new one: units, or the pixels of
   channels, rows and columns in that order. A layer that is not here yet is a row of LAYERS, and one in Python. */

export const LAYERS = {
  /* Wx + b */
  linear({ weight, bias }, x) {
    const [outputs, inputs] = weight.shape;
    const y = new Float32Array(outputs);
    for (let o = 0, at = 0; o < outputs; o++) {
      let a = bias ? bias[o] : 0;
      let b = 0;
      let c = 0;
      let d = 0;
      let i = 0; // four sums at a time do not wait for each other
      for (; i + 3 < inputs; i += 4, at += 4) {
        a += weight[at] * x[i];
        b += weight[at + 1] * x[i + 1];
        c += weight[at + 2] * x[i + 2];
        d += weight[at + 3] * x[i + 3];
      }
      for (; i < inputs; i++, at++) a += weight[at] * x[i];
      y[o] = a + b + c + d;
    }
    return y;
  },

  convolution: (layer, x) => slide(layer, layer.output, layer.input, x, false),

  "transposed-convolution": (layer, x) => slide(layer, layer.input, layer.output, x, true),

  relu: (_, x) => x.map((value) => Math.max(value, 0)),

  tanh: (_, x) => x.map(Math.tanh),

  /* Values, then as many gates. */
  gate(_, x) {
    const n = x.length / 2;
    return x.subarray(0, n).map((value, i) => value / (1 + Math.exp(-x[n + i])));
  },

  /* A scale and a shift for each unit, or for each channel. */
  affine({ scale, shift }, x) {
    const size = x.length / shift.length;
    return x.map((value, i) => {
      const unit = Math.floor(i / size);
      return (scale ? value * scale[unit] : value) + shift[unit];
    });
  },

  /* Mean 0 and variance 1 over all units. */
  normalise({ eps }, x) {
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
    const precision = 1 / Math.sqrt(variance + eps);
    return x.map((value) => (value - mean) * precision);
  },

  /* From the channels of a pixel side by side to a plane for each channel. */
  planes({ channels }, x) {
    const size = x.length / channels;
    return x.map((_, i) => x[(i % size) * channels + Math.floor(i / size)]);
  },

  /* And back, for several blocks of such planes. */
  pixels({ channels, blocks }, x) {
    const size = x.length / channels / blocks;
    return x.map((_, i) => {
      const pixel = Math.floor(i / channels) % size;
      const block = Math.floor(i / channels / size);
      return x[(block * channels + (i % channels)) * size + pixel];
    });
  },
};

export function forward(layers, x) {
  return layers.reduce((y, layer) => LAYERS[layer.type](layer, y), x);
}

/* Lay a kernel on every stride-th pixel of a large picture, each a pixel of a small one. A convolution sums from the
   large to the small; the transposed convolution sums the other way. Weights are [small channel, large channel, y, x]. */
function slide({ weight, bias, stride, padding }, small, large, x, upwards) {
  const [smalls, height, width] = small;
  const [larges, rows, columns] = large;
  const [, , side] = weight.shape;
  const y = new Float32Array(upwards ? larges * rows * columns : smalls * height * width);
  if (bias) y.forEach((_, i) => (y[i] = bias[Math.floor((i * bias.length) / y.length)]));
  let at = 0;
  for (let s = 0; s < smalls; s++)
    for (let l = 0; l < larges; l++)
      for (let ky = 0; ky < side; ky++)
        for (let kx = 0; kx < side; kx++) {
          const w = weight[at++];
          const top = ky - padding;
          const left = kx - padding;
          const first = Math.max(0, Math.ceil(-left / stride));
          const last = Math.min(width - 1, Math.floor((columns - 1 - left) / stride));
          for (let i = 0; i < height; i++) {
            const line = i * stride + top;
            if (line < 0 || line >= rows) continue;
            const of_small = (s * height + i) * width;
            const of_large = (l * rows + line) * columns + left;
            if (upwards) for (let j = first; j <= last; j++) y[of_large + j * stride] += w * x[of_small + j];
            else for (let j = first; j <= last; j++) y[of_small + j] += w * x[of_large + j * stride];
          }
        }
  return y;
}
