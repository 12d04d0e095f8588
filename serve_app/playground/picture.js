// A picture to go on from: a file becomes one that the service can read.

const READ_BY_SERVICE = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);
/** The service's own limits, in its default settings, with room for a mask. */
const MOST_BYTES = 8 * 2 ** 20;
const MOST_PIXELS = 2 ** 24;
/** A larger file is none that a camera makes. The browser would read all of it to find out. */
const HOPELESS_BYTES = 128 * 2 ** 20;
const QUALITY = 0.95;

/** Why a file cannot be used, as a sentence. */
export class Unusable extends Error {}

/**
 * Return { file, bitmap, name, scaled } of a file. It is kept as it is, for exact pixels, unless it is too large or of a kind that the
 * service does not read: then it is drawn again, with sides of at most `side` pixels. Throws Unusable.
 */
export async function opened(file, side) {
  const name = file.name || "picture";
  if (!file.size) throw new Unusable(`${name} is empty.`);
  if (file.size > HOPELESS_BYTES) throw new Unusable(`${name} is too large: ${Math.round(file.size / 2 ** 20)} MiB.`);
  // Into memory: the file may change or vanish before it is sent.
  const kept = new File([await contentOf(file, name)], name, { type: file.type });
  const bitmap = await decoded(kept, name);
  const fits = kept.size <= MOST_BYTES && bitmap.width * bitmap.height <= MOST_PIXELS;
  if (fits && READ_BY_SERVICE.has(kept.type)) return { file: kept, bitmap, name, scaled: false };
  const smaller = await redrawn(bitmap, side, name);
  bitmap.close();
  return { file: smaller, bitmap: await decoded(smaller, name), name, scaled: !fits };
}

/** Return a file as a data URI. Not by fetch: the page's policy lets it fetch from the service alone. */
export function toDataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Return a canvas of this size, and its context. */
export function canvasOf(width, height, options) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  return [canvas, canvas.getContext("2d", options)];
}

/** Return the first picture among the files that are dropped or pasted, or the first file, whose refusal says why. */
export const pictureAmong = (files) => [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];

async function contentOf(file, name) {
  return file.arrayBuffer().catch(() => {
    throw new Unusable(`${name} cannot be read.`);
  });
}

async function decoded(file, name) {
  return createImageBitmap(file).catch(() => {
    throw new Unusable(`${name} is no picture that this browser can read.`);
  });
}

async function redrawn(bitmap, side, name) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((length) => Math.max(1, Math.round(length * scale)));
  const [canvas, context] = canvasOf(width, height);
  context.fillStyle = "white"; // as the service shows what is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  return new File([blob], name, { type: blob.type });
}
