/* The drawer: curves, figures and config of the run. */
import { element, lineChart, number } from "./chart.js";

const CURVES = { elbo: "ELBO, nats", log_likelihood: "Reconstruction, nats", kl: "KL, nats" };

export function showRun({ run, images, size }) {
  const dialog = document.getElementById("run");
  document.getElementById("open-run").addEventListener("click", () => {
    dialog.showModal();
    drawCurves(run.metrics);
  });
  document.getElementById("close-run").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it

  const rows = [
    ["Bound of", run.support],
    ["Decoder", run.decoder],
    ["Images", `${run.data}; ${images.n} ${images.split} images in this page`],
  ];
  for (const split of ["train", "validation"]) {
    const last = run.metrics.findLast((row) => row.split === split);
    if (last)
      rows.push([
        `Last ${split} ELBO`,
        `${number(last.elbo)} = ${number(last.log_likelihood)} − ${number(last.kl)} nats, epoch ${last.epoch}`,
      ]);
  }
  for (const found of run.evaluations) {
    const more = found.bits_per_dim === null ? "" : `; ${number(found.bits_per_dim, 3)} bits per dimension`;
    rows.push([found.of, `ELBO ${number(found.elbo)}; log evidence ${number(found.log_evidence)} nats${more}`]);
  }
  rows.push([
    "Weights",
    `encoder ${run.precision.encoder} bits, decoder ${run.precision.decoder} bits; page of ${(size / 1e6).toFixed(1)} MB`,
  ]);
  const figures = document.getElementById("figures");
  for (const [name, value] of rows) figures.append(element("dt", {}, name), element("dd", {}, value));
  document.getElementById("config").textContent = run.config;
}

/* Draw a chart for each term, as wide as the drawer is now that it is open. */
function drawCurves(metrics) {
  const charts = document.getElementById("curves");
  charts.replaceChildren(
    ...Object.entries(CURVES).map(([name, title]) => {
      const lines = ["train", "validation"].map((split) => ({
        class: split,
        points: metrics.filter((row) => row.split === split).map((row) => [row.epoch, row[name] ?? NaN]),
      }));
      return lineChart(title, lines, { width: charts.clientWidth });
    }),
  );
}
