/* Images on canvases: grey, or in three colours; channels that are neither stand side by side, in grey. */

export function seenSize({ height, width, channels }) {
  return { height, width: channels === 1 || channels === 3 ? width : width * channels };
}

/* Paint an image of 0..1, or of what `scale` makes 0..1 of, at its natural size: CSS enlarges it. */
export function paint(canvas, values, shape, scale = 1) {
  const { width, height } = seenSize(shape);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(imageData(values, shape, scale), 0, 0);
}

export function imageData(values, shape, scale = 1) {
  const { channels } = shape;
  const { width, height } = seenSize(shape);
  const picture = new ImageData(width, height);
  const isColour = channels === 3;
  for (let i = 0; i < width * height; i++) {
    const column = i % width;
    const line = Math.floor(i / width);
    const pixel = line * shape.width + (column % shape.width);
    const first = pixel * channels;
    for (let c = 0; c < 3; c++)
      picture.data[4 * i + c] = 255 * scale * values[first + (isColour ? c : Math.floor(column / shape.width))];
    picture.data[4 * i + 3] = 255;
  }
  return picture;
}
