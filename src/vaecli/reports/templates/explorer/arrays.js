/* The numbers of the page: one block of bytes, in gzip and base 64, in which JSON names arrays by their places. */

const READERS = {
  uint8: (buffer, offset, length) => new Uint8Array(buffer, offset, length),
  float32: (buffer, offset, length) => new Float32Array(buffer, offset, length),
  float16: (buffer, offset, length) => singles(new Uint16Array(buffer, offset, length)),
};

/* Return the block as an ArrayBuffer. */
export async function unpack(base64) {
  const text = atob(base64.trim());
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < packed.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/* Return JSON with every reference {"array": [type, offset, shape]} replaced by its typed array, which has a shape. */
export function resolve(json, buffer) {
  if (json === null || typeof json !== "object") return json;
  if (Array.isArray(json)) return json.map((value) => resolve(value, buffer));
  if (json.array) {
    const [type, offset, shape] = json.array;
    const length = shape.reduce((product, n) => product * n, 1);
    return Object.assign(READERS[type](buffer, offset, length), { shape });
  }
  return Object.fromEntries(Object.entries(json).map(([key, value]) => [key, resolve(value, buffer)]));
}

/* Return row i of an array of two axes. */
export function row(array, i) {
  const width = array.shape[1];
  return array.subarray(i * width, (i + 1) * width);
}

/* Return halves (IEEE 754, as 16-bit words) in single precision, by a table of all there are. */
function singles(halves) {
  singles.table ??= Float32Array.from({ length: 65536 }, (_, word) => {
    const sign = word >> 15 ? -1 : 1;
    const exponent = (word >> 10) & 31;
    const fraction = word & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : (sign * fraction) / 2 ** 24;
  });
  const { table } = singles;
  const result = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) result[i] = table[halves[i]];
  return result;
}
