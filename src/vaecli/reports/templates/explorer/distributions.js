/* Distributions: of pixels given the decoder's outputs, of z given the encoder's. Logarithms are in nats. */
import { forward } from "./layers.js";

const LOG_2PI = Math.log(2 * Math.PI);
const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const LINKS = { sigmoid, linear: (x) => x };

/* Random numbers that are the same every time for a seed (mulberry32, and Box and Muller's normals). */
export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  uniform() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  normal() {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  normals(n) {
    return Float32Array.from({ length: n }, () => this.normal());
  }
}

/* What a pixel is, given its location m (after the link) and log scale s. */
const PIXELS = {
  bernoulli: {
    mean: sigmoid,
    stddev: (m) => Math.sqrt(sigmoid(m) * sigmoid(-m)),
    logProb: (m, s, x) => x * m - softplus(m),
    draw: (m, s, random) => (random.uniform() < sigmoid(m) ? 1 : 0),
  },

  normal: {
    mean: (m) => m,
    stddev: (m, s) => Math.exp(s),
    logProb: (m, s, x) => -0.5 * ((x - m) * Math.exp(-s)) ** 2 - s - 0.5 * LOG_2PI,
    draw: (m, s, random) => m + Math.exp(s) * random.normal(),
  },

  /* Of density e^(m x) / ((e^m - 1)/m) on 0..1; near m = 0, where that is 0/0, by series. */
  "continuous-bernoulli": {
    mean: (m) => (Math.abs(m) < 1e-2 ? 0.5 + m / 12 - m ** 3 / 720 : -1 / Math.expm1(-m) - 1 / m),
    stddev(m) {
      if (Math.abs(m) < 0.1) return Math.sqrt(1 / 12 - m ** 2 / 240 + m ** 4 / 6048);
      return Math.sqrt(1 / m ** 2 - 0.25 / Math.sinh(m / 2) ** 2);
    },
    logProb(m, s, x) {
      const size = Math.abs(m); // log((e^|m| - 1)/|m|), and m (x - ½) is odd
      const half = size < 1e-2 ? size ** 2 / 24 : size / 2 + Math.log(-Math.expm1(-size) / size);
      return m * (x - 0.5) - half;
    },
    draw(m, s, random) {
      const falling = -Math.max(Math.abs(m), 1e-6);
      const x = Math.log1p(random.uniform() * Math.expm1(falling)) / falling;
      return m > 0 ? 1 - x : x;
    },
  },

  /* A mass on the levels k of x = k/255, of a logistic variable rounded to the nearest, its tails at the ends. */
  "discretized-logistic": {
    mean(m, s) {
      const scale = 255 * Math.exp(s);
      const at = (end) => scale * softplus((255 * m - end) / scale);
      return (at(0) - at(255)) / 255;
    },
    stddev(m, s) {
      const scale = 255 * Math.exp(s);
      let first = 0;
      let second = 0;
      let below = 0;
      for (let k = 0; k < 256; k++) {
        const above = k < 255 ? sigmoid((k + 0.5 - 255 * m) / scale) : 1;
        first += ((above - below) * k) / 255;
        second += (above - below) * (k / 255) ** 2;
        below = above;
      }
      return Math.sqrt(Math.max(second - first ** 2, 0));
    },
    logProb(m, s, x) {
      const scale = 255 * Math.exp(s);
      const k = 255 * x;
      const above = -softplus(-(k + 0.5 - 255 * m) / scale);
      const below = -softplus((k - 0.5 - 255 * m) / scale);
      if (k < 0.5) return above;
      return k > 254.5 ? below : above + below + Math.log(-Math.expm1(-1 / scale));
    },
    draw(m, s, random) {
      const u = Math.max(random.uniform(), 1e-12);
      const k = Math.round(255 * (m + Math.exp(s) * Math.log(u / (1 - u))));
      return Math.min(Math.max(k, 0), 255) / 255;
    },
  },
};

/* p(x|z), every pixel by itself: blocks of outputs, the one of locations first. */
export class Likelihood {
  constructor({ type, link = "linear", log_scale = null }, outputs, n_pixels) {
    this.pixel = PIXELS[type];
    this.location = outputs.subarray(0, n_pixels).map(LINKS[link]);
    const { slope = 0, offset = 0, floor = null } = log_scale ?? {};
    this.logScale = new Float32Array(n_pixels).map((_, i) =>
      Math.max((slope ? slope * outputs[n_pixels + i] : 0) + offset, floor ?? -Infinity),
    );
  }

  mean() {
    return this.location.map((m, i) => this.pixel.mean(m, this.logScale[i]));
  }

  stddev() {
    return this.location.map((m, i) => this.pixel.stddev(m, this.logScale[i]));
  }

  draw(random) {
    return this.location.map((m, i) => this.pixel.draw(m, this.logScale[i], random));
  }

  logProb(x) {
    let total = 0;
    for (let i = 0; i < x.length; i++) total += this.pixel.logProb(this.location[i], this.logScale[i], x[i]);
    return total;
  }
}

const logNoise = (epsilon) => -0.5 * epsilon.reduce((total, e) => total + e * e, 0) - 0.5 * LOG_2PI * epsilon.length;

/* A flow of affine layers, coupling or autoregressive, with the numbers of a context that its layers see: y = f(x; c), and
   x of a given y, each with log |∂y/∂x|. */
function affineFlow(transforms, n, context = []) {
  const minimum = Math.log(1e-3); // of a layer's log scale
  const joined = new Float32Array(n + context.length);
  joined.set(context, n);

  /* Return the shifts and log scales that a layer has at a place. */
  function shifted({ layers }, place) {
    joined.set(place);
    const phi = forward(layers, joined);
    const log = place.map((_, i) => phi[2 * i + 1] / (1 + Math.abs(phi[2 * i + 1] / minimum)));
    return { shift: place.map((_, i) => phi[2 * i]), log };
  }

  return {
    forward(x) {
      let y = Float32Array.from(x);
      let logVolume = 0;
      for (const transform of transforms) {
        const { shift, log } = shifted(transform, y);
        y = y.map((v, i) => v * Math.exp(log[i]) + shift[i]);
        logVolume += sum(log);
      }
      return { y, logVolume };
    },

    inverse(y) {
      let logVolume = 0;
      for (const transform of transforms.toReversed()) {
        let x = new Float32Array(n);
        let log;
        for (let pass = 0; pass < transform.passes; pass++) {
          const at = shifted(transform, x);
          x = y.map((v, i) => (v - at.shift[i]) / Math.exp(at.log[i]));
          log = at.log;
        }
        y = x;
        logVolume += sum(log);
      }
      return { x: y, logVolume };
    },
  };
}

/* q(z|x) given the encoder's outputs. Each has mean and stddev (Z); transport(ε), which returns z and log q(z|x);
   logProb(z); and klPerDimension(), KL(q ‖ N(0, I)), null where it has no closed form. */
const POSTERIORS = {
  diagonal(_, outputs, n) {
    const mean = outputs.subarray(0, n);
    const logSigma = outputs.subarray(n, 2 * n).map((v) => v / 2);
    const stddev = logSigma.map(Math.exp);
    const ofNoise = (epsilon) => logNoise(epsilon) - sum(logSigma);
    return {
      mean,
      stddev,
      transport: (epsilon) => ({ z: mean.map((m, i) => m + stddev[i] * epsilon[i]), logQ: ofNoise(epsilon) }),
      logProb: (z) => ofNoise(mean.map((m, i) => (z[i] - m) / stddev[i])),
      klPerDimension: () => mean.map((m, i) => 0.5 * (m * m + Math.expm1(2 * logSigma[i])) - logSigma[i]),
    };
  },

  /* z = μ + L ε with L = diag(σ) U; U's rows below its diagonal of ones come after μ and log σ². */
  full(_, outputs, n) {
    const mean = outputs.subarray(0, n);
    const logSigma = outputs.subarray(n, 2 * n).map((v) => v / 2);
    const sigma = logSigma.map(Math.exp);
    const below = (i) => outputs.subarray(2 * n + (i * (i - 1)) / 2, 2 * n + (i * (i + 1)) / 2);
    const stddev = sigma.map((s, i) => s * Math.sqrt(1 + below(i).reduce((total, u) => total + u * u, 0)));
    const ofNoise = (epsilon) => logNoise(epsilon) - sum(logSigma);
    const mixed = (i, epsilon) => below(i).reduce((total, u, j) => total + u * epsilon[j], 0);
    return {
      mean,
      stddev,
      transport: (epsilon) => ({
        z: mean.map((m, i) => m + sigma[i] * (epsilon[i] + mixed(i, epsilon))),
        logQ: ofNoise(epsilon),
      }),
      logProb(z) {
        const epsilon = new Float32Array(n);
        for (let i = 0; i < n; i++) epsilon[i] = (z[i] - mean[i]) / sigma[i] - mixed(i, epsilon);
        return ofNoise(epsilon);
      },
      klPerDimension: () => mean.map((m, i) => 0.5 * (m * m + stddev[i] ** 2 - 1) - logSigma[i]),
    };
  },

  /* z = μ + σ ⊙ f(ε; c), f of layers, coupling or autoregressive; its moments are those of the same noise as in Python. */
  flow({ transforms, noise, of_mean }, outputs, n) {
    const shift = outputs.subarray(0, n);
    const logSigma = outputs.subarray(n, 2 * n).map((v) => v / 2);
    const sigma = logSigma.map(Math.exp);
    const flow = affineFlow(transforms, n, outputs.subarray(2 * n));

    function transport(epsilon) {
      const { y, logVolume } = flow.forward(epsilon);
      return { z: y.map((v, i) => shift[i] + sigma[i] * v), logQ: logNoise(epsilon) - logVolume - sum(logSigma) };
    }

    function logProb(z) {
      const { x, logVolume } = flow.inverse(shift.map((m, i) => (z[i] - m) / sigma[i]));
      return logNoise(x) - logVolume - sum(logSigma);
    }

    // Parts of a prior are never asked for their moments, and there may be hundreds.
    const draws = (count) => Array.from({ length: count }, (_, i) => transport(noise.subarray(i * n, (i + 1) * n)).z);
    const over = (some, value) => shift.map((_, i) => sum(some.map((z) => value(z[i], i))));
    const meanOf = (some) => over(some, (z) => z / some.length);
    function stddevOf(some) {
      const mean = meanOf(some);
      return over(some, (z, i) => (z - mean[i]) ** 2 / (some.length - 1)).map(Math.sqrt);
    }
    let mean = null;
    let stddev = null;
    return {
      get mean() {
        return (mean ??= meanOf(draws(of_mean)));
      },
      get stddev() {
        return (stddev ??= stddevOf(draws(noise.shape[0])));
      },
      transport,
      logProb,
      klPerDimension: () => null,
    };
  },
};

export function posterior(spec, outputs, latent_dim) {
  return POSTERIORS[spec.type](spec, outputs, latent_dim);
}

/* p(z): standard normal; or parts of any kind of posterior with the logarithms of their shares, which a flow may have been
   put before: they are then of y = f(z). */
export class Prior {
  constructor(spec, latent_dim) {
    this.latent_dim = latent_dim;
    this.isStandard = spec.type === "standard";
    if (this.isStandard) return;
    const width = spec.outputs.shape[1];
    this.logShares = spec.log_shares;
    this.part = (k) => posterior(spec.posterior, spec.outputs.subarray(k * width, (k + 1) * width), latent_dim);
    this.flow = affineFlow(spec.transforms ?? [], latent_dim);
  }

  get parts() {
    this._parts ??= Array.from(this.logShares, (_, k) => this.part(k));
    return this._parts;
  }

  draw(random) {
    const epsilon = random.normals(this.latent_dim);
    if (this.isStandard) return epsilon;
    let k = 0;
    for (let left = random.uniform(); k < this.logShares.length - 1; k++) {
      left -= Math.exp(this.logShares[k]);
      if (left < 0) break;
    }
    return this.flow.inverse(this.part(k).transport(epsilon).z).x;
  }

  logProb(z) {
    if (this.isStandard) return logNoise(z);
    const { y, logVolume } = this.flow.forward(z);
    const terms = this.parts.map((part, k) => this.logShares[k] + part.logProb(y));
    const most = Math.max(...terms);
    return logVolume + most + Math.log(sum(terms.map((term) => Math.exp(term - most))));
  }
}
