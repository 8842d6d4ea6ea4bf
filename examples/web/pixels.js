// Pictures to a network's pixels: the arithmetic of the Python package's `Preprocessing.fit`, which
// is Pillow's, pixel for pixel. A canvas would resize otherwise in every browser.

// Pillow's weights are whole numbers of 2^-22.
const PRECISION = 22;
// A canvas this large works on every phone; larger pictures are read in strips.
const PIXELS_AT_ONCE = 2 ** 22;

// No color management, as in Pillow; and transparent pixels keep their color.
const DECODING = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

// Each kernel, and how far from its center it reaches.
const KERNELS = {
  bilinear: [(x) => Math.max(1 - Math.abs(x), 0), 1],
  bicubic: [cubic, 2],
};

/** An image file as a picture, upright; fails if the browser cannot read it. */
export function decode(blob) {
  return createImageBitmap(blob, DECODING);
}

/**
 * The pixels of a decoded picture over white, which is where Python lays transparent ones.
 *
 * @param {ImageBitmap} bitmap
 * @returns {{width: number, height: number, data: Uint8ClampedArray}} four bytes to a pixel: RGB and
 *     one that says nothing.
 */
export function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.min(height, Math.max(1, Math.floor(PIXELS_AT_ONCE / width)));
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = rows;
  const context = canvas.getContext("2d", { colorSpace: "srgb", willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  const data = new Uint8ClampedArray(4 * width * height);
  for (let top = 0; top < height; top += rows) {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const count = Math.min(rows, height - top);
    data.set(context.getImageData(0, 0, width, count).data, 4 * width * top);
  }
  return { width, height, data };
}

/**
 * What a network of this size takes of a picture: the shorter side resized to size / crop, and the
 * center cut out.
 *
 * @param image as `pixelsOf` gives it.
 * @param {{crop: number, interpolation: string}} preprocessing of a bundle's manifest.
 * @param {[number, number, number]} shape height, width and channels: 3 for RGB, 1 for grey.
 * @returns {Uint8ClampedArray} height x width x channels bytes.
 */
export function fit(image, preprocessing, [height, width, channels]) {
  const resized = resizedSize(image, [height, width], preprocessing.crop);
  const kernel = KERNELS[preprocessing.interpolation];
  const columns = (picture) => resize(picture, "width", resized.width, width, kernel);
  const rows = (picture) => resize(picture, "height", resized.height, height, kernel);
  // The order in which Pillow takes the two, since 13.0.
  const isTall = image.height > 2 * image.width && resized.height < image.height;
  const { data } = isTall ? columns(rows(image)) : rows(columns(image));
  return channels === 1 ? grey(data) : data;
}

function resizedSize(image, size, crop) {
  const scaled = size.map((side) => Math.floor(side / crop));
  if (scaled[0] !== scaled[1]) {
    const ratio = Math.min(image.height / scaled[0], image.width / scaled[1]);
    return { height: round(image.height / ratio), width: round(image.width / ratio) };
  }
  const [shorter] = scaled;
  const [shortest, longest] = [image.width, image.height].sort((a, b) => a - b);
  const longer = Math.trunc((shorter * longest) / shortest);
  const isUpright = image.height > image.width;
  return { height: isUpright ? longer : shorter, width: isUpright ? shorter : longer };
}

/** The middle `count` of `resized` columns ("width") or rows ("height"), three bytes to a pixel. */
function resize(image, side, resized, count, kernel) {
  const bytes = image.data.length / (image.width * image.height);
  const isWidth = side === "width";
  const lines = isWidth ? image.height : image.width;
  // How far apart the bytes are along the side, and from line to line.
  const steps = (columns, size) => (isWidth ? [size, columns * size] : [columns * size, size]);
  const [step, lineStep] = steps(image.width, bytes);
  const [newStep, newLineStep] = steps(isWidth ? count : image.width, 3);
  const data = new Uint8ClampedArray(3 * count * lines); // clamps what bicubic overshoots
  const start = round((resized - count) / 2);
  const half = 1 << (PRECISION - 1);
  for (let i = 0; i < count; i++) {
    const { low, weights } = weightsOf(start + i, image[side], resized, kernel);
    for (let line = 0; line < lines; line++) {
      let [red, green, blue] = [half, half, half];
      let old = line * lineStep + low * step;
      for (let tap = 0; tap < weights.length; tap++, old += step) {
        red += weights[tap] * image.data[old];
        green += weights[tap] * image.data[old + 1];
        blue += weights[tap] * image.data[old + 2];
      }
      const at = line * newLineStep + i * newStep;
      data[at] = red >> PRECISION;
      data[at + 1] = green >> PRECISION;
      data[at + 2] = blue >> PRECISION;
    }
  }
  return { ...image, [side]: count, data };
}

/** The first old pixel that a new one is made of, and the weights of those from there. */
function weightsOf(position, whole, resized, [kernel, support]) {
  const scale = whole / resized;
  const widened = Math.max(scale, 1); // antialiasing: the kernel grows with what it averages
  const center = (position + 0.5) * scale;
  const reach = support * widened;
  const low = Math.max(Math.trunc(center - reach + 0.5), 0);
  const high = Math.min(Math.trunc(center + reach + 0.5), whole);
  const weights = [];
  let sum = 0;
  for (let i = low; i < high; i++) {
    const weight = kernel((i - center + 0.5) * (1 / widened));
    weights.push(weight);
    sum += weight;
  }
  const fixed = weights.map((weight) => {
    const scaled = (weight / sum) * 2 ** PRECISION;
    return Math.trunc(weight < 0 ? scaled - 0.5 : scaled + 0.5);
  });
  return { low, weights: Int32Array.from(fixed) };
}

/** Keys' kernel with a = -1/2. */
function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) {
    return ((a + 2) * x - (a + 3)) * x * x + 1;
  }
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** To the nearest whole number, halves to the even one, as Python rounds. */
function round(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

/** ITU-R 601 luma in 16-bit fixed point. */
function grey(rgb) {
  const data = new Uint8ClampedArray(rgb.length / 3);
  for (let i = 0; i < data.length; i++) {
    const luma = 19595 * rgb[3 * i] + 38470 * rgb[3 * i + 1] + 7471 * rgb[3 * i + 2];
    data[i] = (luma + 0x8000) >> 16;
  }
  return data;
}
