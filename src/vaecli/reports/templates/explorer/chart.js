/* Small charts as SVG: lines over epochs, where a value lies among many, and intervals. All text is set as text. */

const SVG = "http://www.w3.org/2000/svg";

/* Return an element of the page, or of SVG, with attributes, and texts or elements in it. */
export function element(name, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "line", "rect", "circle", "text", "polyline", "title"].includes(name);
  const made = isSvg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function number(value, digits = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toFixed(digits).replace("-", "−");
}

/* Return a number of things. */
export function count(n, noun) {
  return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
}

/* Return ticks at round numbers within an interval, about so many. */
function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) found.push(tick);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

/* Draw lines {name, points: [x, y], class} in one chart. */
export function lineChart(title, lines, { width, height = 190 }) {
  const shown = lines.map((line) => ({ ...line, points: line.points.filter(([, y]) => Number.isFinite(y)) }));
  const points = shown.flatMap((line) => line.points);
  const svg = element("svg", { width, height, role: "img", class: "chart" }, element("title", {}, title));
  if (!points.length) return svg;
  const [left, right, top, bottom] = [52, width - 8, 26, height - 30];
  let [[x0, x1], [y0, y1]] = [extent(points.map(([x]) => x)), extent(points.map(([, y]) => y))];
  if (x1 === x0) [x0, x1] = [x0 - 1, x1 + 1];
  if (y1 === y0) [y0, y1] = [y0 - 1, y1 + 1];
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (right - left);
  const y = (value) => bottom - ((value - y0) / (y1 - y0)) * (bottom - top);
  const vertical = ticks(y0, y1, 4);
  const horizontal = ticks(x0, x1, 5);
  for (const tick of vertical.found)
    svg.append(
      element("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), class: "grid" }),
      element("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, number(tick, vertical.digits)),
    );
  for (const tick of horizontal.found.filter(Number.isInteger))
    svg.append(element("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, String(tick)));
  svg.append(element("text", { x: left, y: 14, class: "strong" }, title));
  svg.append(element("text", { x: right, y: height - 2, "text-anchor": "end" }, "epoch"));
  for (const line of shown) {
    const d = line.points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
    svg.append(element("path", { d, class: `line ${line.class}` }));
    if (line.points.length === 1)
      svg.append(element("circle", { cx: x(line.points[0][0]), cy: y(line.points[0][1]), r: 3, class: line.class }));
  }
  return svg;
}

/* Draw how many of some values lie where, as bars, and a marked one among them. */
export function distributionChart(title, values, marked, { width, height = 88, digits = 1 }) {
  const svg = element("svg", { width, height, role: "img", class: "chart" });
  const [left, right, top, bottom] = [0, width, 24, height - 18];
  const sorted = Float32Array.from(values).sort();
  const outside = Math.floor(0.002 * (sorted.length - 1));
  let [low, high] = [sorted[outside], sorted[sorted.length - 1 - outside]];
  const span = high - low || 2; // what is marked may widen the chart to double, and then stands at its edge
  const place = Math.min(Math.max(marked ?? low, low - span), high + span);
  [low, high] = [Math.min(low, place) - 0.03 * span, Math.max(high, place) + 0.03 * span];
  const x = (value) => left + ((value - low) / (high - low)) * (right - left);
  const bins = new Array(80).fill(0);
  for (const value of sorted) {
    const bin = Math.floor(((value - low) / (high - low)) * bins.length);
    if (bin >= 0 && bin < bins.length) bins[bin]++;
  }
  const most = Math.max(...bins);
  const size = (right - left) / bins.length;
  bins.forEach((count, i) => {
    const tall = (count / most) * (bottom - top);
    if (count)
      svg.append(
        element("rect", { x: left + i * size, y: bottom - tall, width: size - 0.6, height: tall, class: "bar" }),
      );
  });
  svg.append(element("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  const along = ticks(low, high, 4);
  for (const tick of along.found) {
    const text = number(tick, along.digits);
    const half = 3.5 * text.length;
    svg.append(
      element(
        "text",
        { x: Math.min(Math.max(x(tick), half), width - half), y: height - 4, "text-anchor": "middle" },
        text,
      ),
    );
  }
  svg.append(element("text", { x: left, y: 13, class: "strong" }, title));
  if (place !== (marked ?? place)) {
    const side = Math.sign(marked - place);
    const tip = x(place) + 4 * side;
    const back = x(place) - 5 * side;
    const middle = (top + bottom) / 2;
    svg.append(
      element("path", { d: `M${back} ${middle - 6}L${tip} ${middle}L${back} ${middle + 6}Z`, class: "marked" }),
    );
  }
  let said = `${title}; no drawing yet`;
  if (marked !== null) {
    said = `${title}: ${number(marked, digits)}`;
    svg.append(
      element("line", { x1: x(place), x2: x(place), y1: top - 6, y2: bottom, class: "marked" }),
      element(
        "text",
        { x: right, y: 13, "text-anchor": "end", class: "strong marked" },
        `${number(marked, digits)} nats`,
      ),
    );
  }
  svg.prepend(element("title", {}, said));
  return svg;
}

/* Draw means with intervals of one and two deviations, one a dimension; null for no posterior, the prior's place only. */
export function intervalChart(names, q, { width, height = 236 }) {
  const svg = element("svg", { width, height, role: "img", class: "chart" });
  const [left, right, top, bottom] = [26, width - 6, 8, height - 24];
  const furthest = q ? Math.max(...names.map(({ index }) => Math.abs(q.mean[index]) + 2 * q.stddev[index])) : 0;
  const limit = Math.max(3, Math.ceil(furthest));
  const y = (value) => (top + bottom) / 2 - (value / limit) * ((bottom - top) / 2);
  svg.append(element("rect", { x: left, width: right - left, y: y(1), height: y(-1) - y(1), class: "prior" }));
  for (const tick of ticks(-limit, limit, 4).found)
    svg.append(
      element("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), class: "grid" }),
      element("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, number(tick, 0)),
    );
  const size = (right - left) / names.length;
  const letters = Math.max(...names.map(({ index }) => String(index + 1).length));
  names.forEach(({ index, isActive }, i) => {
    const x = left + (i + 0.5) * size;
    if (i % Math.ceil((6.2 * letters + 4) / size) === 0)
      svg.append(
        element(
          "text",
          { x, y: height - 6, "text-anchor": "middle", class: isActive ? "" : "faint" },
          String(index + 1),
        ),
      );
    if (!q) return;
    const [mean, stddev] = [q.mean[index], q.stddev[index]];
    svg.append(
      element("line", { x1: x, x2: x, y1: y(mean - 2 * stddev), y2: y(mean + 2 * stddev), class: "whisker" }),
      element("line", { x1: x, x2: x, y1: y(mean - stddev), y2: y(mean + stddev), class: "whisker one" }),
      element("circle", { cx: x, cy: y(mean), r: Math.min(3.5, size / 3), class: "mean" }),
    );
  });
  svg.prepend(element("title", {}, q ? "Mean and deviation of q(z|x) in each latent dimension" : "No drawing yet"));
  return svg;
}
