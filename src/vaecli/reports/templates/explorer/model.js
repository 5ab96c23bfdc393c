/* The model: what a browser needs of it, and how pixels k in 0..255 become x. Images are flat: rows, columns, channels. */
import { Likelihood, posterior, Prior, Random } from "./distributions.js";
import { forward } from "./layers.js";

export class Model {
  constructor(spec) {
    this.spec = spec;
    this.latent_dim = spec.latent_dim;
    this.shape = spec.image;
    this.n_pixels = this.shape.height * this.shape.width * this.shape.channels;
    this.prior = new Prior(spec.prior, this.latent_dim);
  }

  /* Return q(z|x). */
  encode(x) {
    const { layers, posterior: kind } = this.spec.encoder;
    return posterior(kind, forward(layers, Float32Array.from(x)), this.latent_dim);
  }

  /* Return p(x|z). */
  decode(z) {
    const { layers, likelihood } = this.spec.decoder;
    return new Likelihood(likelihood, forward(layers, Float32Array.from(z)), this.n_pixels);
  }

  /* Estimate the terms of the ELBO of x by one draw from q(z|x), the KL term in closed form where there is one. */
  terms(x, q, noise) {
    const { z, logQ } = q.transport(noise);
    const perDimension = this.prior.isStandard ? q.klPerDimension() : null;
    const kl = perDimension ? perDimension.reduce((total, v) => total + v, 0) : logQ - this.prior.logProb(z);
    return { logLikelihood: this.decode(z).logProb(x), kl };
  }
}

/* Return the terms of the ELBO on average over draws. */
export function average(terms) {
  const mean = (name) => terms.reduce((sum, term) => sum + term[name], 0) / terms.length;
  return { logLikelihood: mean("logLikelihood"), kl: mean("kl") };
}

const PREPROCESSING = {
  binarise: (k, u) => (u * 255 < k ? 1 : 0),
  threshold: (k) => (k > 127 ? 1 : 0),
  dequantise: (k, u) => (k + u) / 256,
  scale: (k) => k / 255,
};

/* Make x of pixels as in training, by the same random numbers every time: a drawing does not flicker as it grows. */
export function preprocess(kind, pixels) {
  const random = new Random(0);
  return Float32Array.from(pixels, (k) => PREPROCESSING[kind](k, random.uniform()));
}
