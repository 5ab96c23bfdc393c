/* A pad to draw on. What is drawn is encoded as it grows; its bound stands beside those of the test images. */
import { row } from "./arrays.js";
import { count, distributionChart, intervalChart, number } from "./chart.js";
import { Random } from "./distributions.js";
import { average, preprocess } from "./model.js";
import { imageData, paint } from "./pixels.js";
import { centre, rasterise } from "./strokes.js";

const MAX_DIMENSIONS = 24;

export function showDrawing(page, state) {
  const { model, images, latent } = page;
  const pad = document.getElementById("pad");
  const { height, width, channels } = model.shape;
  const box = document.getElementById("centred");
  const brush = document.getElementById("brush");
  const ink = document.getElementById("ink");
  const random = new Random(1);
  const noises = Array.from({ length: images.draws }, () => random.normals(model.latent_dim));
  const dimensions = latent.dimensions
    .slice(0, MAX_DIMENSIONS)
    .map(({ index, is_active }) => ({ index, isActive: is_active }));
  let strokes = [];
  let base = null;
  let isDrawing = false;

  pad.width = 336;
  pad.height = Math.round((336 * height) / width);
  ink.parentElement.hidden = channels !== 3;
  box.parentElement.hidden = !images.are_centred;
  box.checked = images.are_centred;
  brush.value = Math.max(0.5, (1.25 * Math.min(height, width)) / 28);
  brush.max = Math.max(3, Math.min(height, width) / 6);

  function colour() {
    const rgb = [1, 3, 5].map((at) => parseInt(ink.value.slice(at, at + 2), 16));
    return channels === 3 ? rgb : new Array(channels).fill(255);
  }

  /* Return the pixels of what is drawn as the encoder gets them; null for nothing. */
  function pixels() {
    if (!strokes.length && !base) return null;
    const placed = box.checked && !base ? centre(strokes, model.shape) : strokes;
    return rasterise(placed, model.shape, base);
  }

  function update() {
    drawPad();
    const drawn = pixels();
    if (!drawn) return state.set({ drawn: null, bound: null });
    const x = preprocess(images.preprocessing, drawn);
    const q = model.encode(x);
    const of = { pixels: drawn, x, q };
    state.set({ drawn: of, z: Float32Array.from(q.mean), selected: "drawing" });
    judge(of, []);
  }

  /* Estimate the bound of what is drawn, some draws at a time between the frames, unless it is another by then. */
  function judge(of, terms) {
    setTimeout(() => {
      if (state.get("drawn") !== of) return;
      for (const until = performance.now() + 8; terms.length < noises.length && performance.now() < until;)
        terms.push(model.terms(of.x, of.q, noises[terms.length]));
      if (terms.length < noises.length) judge(of, terms);
      else state.set({ bound: { of, ...average(terms) } });
    });
  }

  /* Return the image that is drawn over, and its shape: of channels that are no colours their mean. */
  function onPaper() {
    if (channels === 1 || channels === 3) return [base, model.shape];
    const mean = Float32Array.from(
      { length: height * width },
      (_, i) => base.subarray(i * channels, (i + 1) * channels).reduce((sum, v) => sum + v, 0) / channels,
    );
    return [mean, { height, width, channels: 1 }];
  }

  function drawPad() {
    const pen = pad.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, pad.width, pad.height);
    if (base) {
      const picture = document.createElement("canvas");
      Object.assign(picture, { height, width });
      picture.getContext("2d").putImageData(imageData(...onPaper(), 1 / 255), 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(picture, 0, 0, pad.width, pad.height);
    }
    pen.lineCap = pen.lineJoin = "round";
    for (const { points, radius, css } of strokes) {
      pen.strokeStyle = css;
      pen.lineWidth = (2 * radius * pad.width) / width;
      pen.beginPath();
      points.forEach(([x, y], i) => pen[i ? "lineTo" : "moveTo"](x * pad.width, y * pad.height));
      if (points.length === 1) pen.lineTo(points[0][0] * pad.width, points[0][1] * pad.height + 0.1);
      pen.stroke();
    }
    document.getElementById("pad-hint").hidden = strokes.length > 0 || base !== null;
  }

  const placeOf = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  pad.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    pad.setPointerCapture(event.pointerId);
    isDrawing = true;
    const css = channels === 3 ? ink.value : "#fff";
    strokes.push({ points: [placeOf(event)], radius: Number(brush.value), colour: colour(), css });
    schedule();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!isDrawing) return;
    const events = event.getCoalescedEvents?.() ?? [];
    strokes.at(-1).points.push(...(events.length ? events : [event]).map(placeOf));
    schedule();
  });
  for (const kind of ["pointerup", "pointercancel"])
    pad.addEventListener(kind, () => {
      if (isDrawing) schedule();
      isDrawing = false;
    });
  let isScheduled = false;
  function schedule() {
    if (isScheduled) return;
    isScheduled = true;
    requestAnimationFrame(() => {
      isScheduled = false;
      update();
    });
  }

  box.addEventListener("change", update);
  document.getElementById("clear").addEventListener("click", () => {
    [strokes, base] = [[], null];
    update();
  });
  document.getElementById("undo").addEventListener("click", () => {
    strokes.pop();
    update();
  });
  document.getElementById("take").addEventListener("click", () => {
    [strokes, base] = [[], Uint8Array.from(row(images.pixels, state.get("nearest").index))];
    update();
  });

  document.getElementById("as-z").addEventListener("click", () => {
    const drawn = state.get("drawn");
    if (drawn) state.set({ z: Float32Array.from(drawn.q.mean), selected: "drawing" });
  });

  showEncoded(page, state, dimensions);
  drawPad();
}

/* Show what the encoder sees of a drawing, q(z|x), the reconstruction, and the bound. */
function showEncoded({ model, images, run }, state, dimensions) {
  const seen = document.getElementById("seen");
  const reconstruction = document.getElementById("reconstruction");
  const nothing = new Float32Array(model.n_pixels);
  const place = (id) => document.getElementById(id);
  const wide = (id) => ({ width: place(id).clientWidth || 400 });
  state.watch(["drawn", "size"], () => {
    const drawn = state.get("drawn");
    place("as-z").disabled = !drawn;
    paint(seen, drawn ? drawn.x : nothing, model.shape);
    paint(reconstruction, drawn ? model.decode(drawn.q.mean).mean() : nothing, model.shape);
    place("posterior").replaceChildren(intervalChart(dimensions, drawn?.q ?? null, wide("posterior")));
  });
  state.watch(["bound", "size"], () => {
    const bound = state.get("bound");
    const elbo = bound && bound.logLikelihood - bound.kl;
    const charts = [
      ["reconstruction-bound", "Reconstruction, E[log p(x|z)]", images.log_likelihood, bound && bound.logLikelihood],
      ["kl-bound", "KL(q(z|x) ‖ p(z))", images.kl, bound && bound.kl],
      ["elbo-bound", "ELBO", images.elbo, elbo],
    ];
    for (const [id, title, others, value] of charts)
      place(id).replaceChildren(distributionChart(title, others, value, wide(id)));
    place("verdict").textContent = bound
      ? verdict(bound, elbo, images, run.caveat)
      : `The bars are of ${count(images.n, `${images.split} image`)}.`;
  });
}

function verdict({ logLikelihood, kl }, elbo, { elbo: others, n, split }, caveat) {
  const lower = others.reduce((count, other) => count + (other < elbo), 0);
  const share = lower / n;
  const images = count(n, `${split} image`);
  const rank =
    lower === 0
      ? `lower than that of all ${images}: this model finds the drawing improbable`
      : share < 0.05
        ? `lower than that of ${(Math.floor(1000 * (1 - share)) / 10).toFixed(1)} % of ${images}: improbable`
        : lower === n
          ? `higher than that of all ${images}`
          : `higher than that of ${Math.floor(100 * share)} % of ${images}`;
  return `ELBO ${number(elbo, 1)} = ${number(logLikelihood, 1)} − ${number(kl, 1)} nats, ${rank}.${caveat ? ` (The bound is ${caveat}.)` : ""}`;
}
