// A mask over a picture: strokes that can be taken back, and what they mark. It does not touch the document.

import { canvasOf } from "./picture.js";

/** Bounds of a mask's longer side in pixels; between them it is the picture's own, so that edges lie where they are painted. */
const LEAST_SIDE = 64;
const MOST_SIDE = 1024;
/** From this opacity on a pixel counts as marked, as on the service. */
const MARKED = 128;

/**
 * A stroke is { erase, size, points }, in pixels of `canvas`; { clear: true } wipes all before it. `canvas` shows what is marked, in stripes, so
 * that it is seen on pictures of any colour.
 */
export class Mask {
  #context;
  #base;
  #strokes = [];
  #stripes;

  /** `base` is what is marked at the beginning: a bitmap that is white there, or null. */
  constructor({ width, height }, base = null) {
    const longest = Math.max(width, height);
    const scale = Math.min(MOST_SIDE, Math.max(LEAST_SIDE, longest)) / longest;
    const sides = [width, height].map((length) => Math.max(1, Math.round(length * scale)));
    [this.canvas, this.#context] = canvasOf(...sides, { willReadFrequently: true });
    this.#base = base && markedIn(base, ...sides);
    this.#stripes = stripes(this.#context, Math.max(...sides) / 64);
    this.#redraw();
  }

  get empty() {
    return this.share === 0;
  }

  /** How much of the picture is marked, 0 to 1. */
  get share() {
    const { data } = this.#context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    let marked = 0;
    for (let i = 3; i < data.length; i += 4) if (data[i] >= MARKED) marked++;
    return marked / (data.length / 4);
  }

  get canUndo() {
    return this.#strokes.length > 0;
  }

  begin(point, size, erase) {
    this.#strokes.push({ erase, size, points: [point] });
    this.#draw(this.#strokes.at(-1), 0);
  }

  /** Go on with the last stroke. */
  extend(point) {
    const stroke = this.#strokes.at(-1);
    stroke.points.push(point);
    this.#draw(stroke, stroke.points.length - 2);
  }

  clear() {
    this.#strokes.push({ clear: true });
    this.#redraw();
  }

  undo() {
    this.#strokes.pop();
    this.#redraw();
  }

  /** Return a PNG that is white where the picture is marked and black elsewhere; null if nothing is marked. */
  async file() {
    if (this.empty) return null;
    const [canvas, context] = canvasOf(this.canvas.width, this.canvas.height);
    context.drawImage(this.canvas, 0, 0);
    cover(context, "source-in", "white");
    cover(context, "destination-over", "black");
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    return new File([blob], "mask.png", { type: blob.type });
  }

  #redraw() {
    const cleared = this.#strokes.findLastIndex((stroke) => stroke.clear);
    this.#context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.#base && cleared < 0) {
      this.#context.drawImage(this.#base, 0, 0);
      cover(this.#context, "source-in", this.#stripes);
    }
    for (const stroke of this.#strokes.slice(cleared + 1)) this.#draw(stroke, 0);
  }

  /** Draw a stroke from one of its points on. */
  #draw({ erase, size, points }, from) {
    const context = this.#context;
    Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: size, strokeStyle: this.#stripes });
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.beginPath();
    const [x, y] = points[from];
    context.moveTo(x, y);
    context.lineTo(x + 0.01, y); // a dab: a line of no length would not be drawn
    for (const point of points.slice(from + 1)) context.lineTo(...point);
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }
}

/** Return a canvas that is opaque where a mask is white. */
function markedIn(bitmap, width, height) {
  const [canvas, context] = canvasOf(width, height, { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function cover(context, operation, style) {
  context.globalCompositeOperation = operation;
  context.fillStyle = style;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.globalCompositeOperation = "source-over";
}

function stripes(target, width) {
  const side = Math.max(4, Math.round(width * 2));
  const [canvas, context] = canvasOf(side, side);
  cover(context, "source-over", "#3d55d6");
  context.strokeStyle = "#c9d1ff";
  context.lineWidth = side / 3;
  for (const shift of [-side, 0, side]) {
    context.moveTo(shift - side / 2, side * 1.5);
    context.lineTo(shift + side * 1.5, -side / 2);
  }
  context.stroke();
  return target.createPattern(canvas, "repeat");
}
