/* Drawings as lines, and their pixels. Points are in units of the pad's width and height, 0..1. */

const BOX = 20 / 28; // of MNIST: a digit fills 20 of 28 pixels, its centre of mass in the middle

/* Return the pixels 0..255 of strokes over an image (or nothing), each {points, radius (in pixels), colour (channels)}. */
export function rasterise(strokes, shape, base = null) {
  const { height, width, channels } = shape;
  const pixels = base ? Float32Array.from(base) : new Float32Array(height * width * channels);
  for (const { points, radius, colour } of strokes) {
    const cover = coverage(
      points.map(([x, y]) => [x * width, y * height]),
      radius,
      shape,
    );
    for (let i = 0; i < height * width; i++)
      for (let c = 0; cover[i] > 0 && c < channels; c++)
        pixels[i * channels + c] += cover[i] * (colour[c] - pixels[i * channels + c]);
  }
  return Uint8Array.from(pixels, Math.round);
}

/* Scale strokes into the box and move their centre of mass to the middle, as MNIST's digits are. */
export function centre(strokes, shape) {
  const points = strokes.flatMap((stroke) => stroke.points);
  if (!points.length) return strokes;
  const [left, right] = ends(points.map(([x]) => x));
  const [top, bottom] = ends(points.map(([, y]) => y));
  const edge = (2 * Math.max(...strokes.map((stroke) => stroke.radius))) / shape.width;
  const scale = Math.min((BOX - edge) / Math.max(right - left, bottom - top, 1e-6), 4); // a dot stays one
  const move = (strokes, [x0, y0], scale) =>
    strokes.map((stroke) => ({
      ...stroke,
      points: stroke.points.map(([x, y]) => [0.5 + (x - x0) * scale, 0.5 + (y - y0) * scale]),
    }));
  const scaled = move(strokes, [(left + right) / 2, (top + bottom) / 2], scale);
  return move(scaled, centreOfMass(rasterise(scaled, shape), shape), 1);
}

function centreOfMass(pixels, { height, width, channels }) {
  let mass = 0;
  let x = 0;
  let y = 0;
  pixels.forEach((value, i) => {
    const pixel = Math.floor(i / channels);
    mass += value;
    x += value * ((pixel % width) + 0.5);
    y += value * (Math.floor(pixel / width) + 0.5);
  });
  return mass ? [x / mass / width, y / mass / height] : [0.5, 0.5];
}

/* Return how far each pixel is covered by a line with round ends, 0..1. */
function coverage(points, radius, { height, width }) {
  const cover = new Float32Array(height * width);
  const reach = radius + 1;
  points.forEach(([x1, y1], i) => {
    const [x0, y0] = points[Math.max(i - 1, 0)];
    const dx = x1 - x0;
    const dy = y1 - y0;
    const length2 = dx * dx + dy * dy;
    const lines = [Math.floor(Math.min(y0, y1) - reach), Math.ceil(Math.max(y0, y1) + reach)];
    const columns = [Math.floor(Math.min(x0, x1) - reach), Math.ceil(Math.max(x0, x1) + reach)];
    for (let line = Math.max(0, lines[0]); line <= Math.min(height - 1, lines[1]); line++)
      for (let column = Math.max(0, columns[0]); column <= Math.min(width - 1, columns[1]); column++) {
        const px = column + 0.5 - x0;
        const py = line + 0.5 - y0;
        const t = length2 ? Math.min(1, Math.max(0, (px * dx + py * dy) / length2)) : 0;
        const distance = Math.hypot(px - t * dx, py - t * dy);
        const at = line * width + column;
        cover[at] = Math.max(cover[at], Math.min(1, Math.max(0, radius + 0.5 - distance)));
      }
  });
  return cover;
}

function ends(values) {
  return [Math.min(...values), Math.max(...values)];
}
