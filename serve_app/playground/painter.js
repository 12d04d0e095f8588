// The dialog in which a mask is painted over a picture: by mouse, pen, finger or keys.

import { byId } from "./dom.js";
import { canvasOf } from "./picture.js";

/** Least size of the brush in pixels: a smaller dab may miss every one of the 8 x 8 squares that the model works on. */
const LEAST = 12;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ERASER = 5; // the button at the other end of a pen

const dialog = byId("painter");
const stage = dialog.querySelector(".stage");
const ring = dialog.querySelector(".brush");
const size = byId("brush-size");
const button = (action) => dialog.querySelector(`[data-action=${action}]`);

let mask = null;
let brush = [0, 0]; // where it is, in the mask's pixels
let drawing = false;

/** Open the dialog; resolve when it is closed. The mask changes while it is open. */
export function paint(picture, aMask) {
  mask = aMask;
  const { width, height } = mask.canvas;
  const [below, context] = canvasOf(width, height);
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, 0, 0, width, height);
  stage.replaceChildren(below, mask.canvas, ring);
  stage.style.setProperty("--ratio", width / height);
  size.min = Math.min(size.max, Math.max(2, Math.ceil((100 * LEAST) / Math.min(width, height))));
  brush = [width / 2, height / 2];
  choose(false);
  show();
  dialog.showModal();
  stage.focus();
  return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

const diameter = () => (size.value / 100) * Math.min(mask.canvas.width, mask.canvas.height);

const erasing = () => button("erase").ariaPressed === "true";

function choose(erase) {
  button("erase").ariaPressed = String(erase);
  ring.classList.toggle("erasing", erase);
}

function begin(erase = erasing()) {
  drawing = true;
  mask.begin(brush, diameter(), erase);
}

function end() {
  if (!drawing) return;
  drawing = false;
  show();
}

function moveTo(x, y) {
  const { width, height } = mask.canvas;
  brush = [Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))];
  if (drawing) mask.extend(brush);
  showBrush();
}

function undo() {
  if (drawing || !mask.canUndo) return;
  mask.undo();
  show();
}

function resize(by) {
  size.value = Number(size.value) + by;
  showBrush();
}

function showBrush() {
  const { width, height } = mask.canvas;
  ring.style.left = `${(100 * brush[0]) / width}%`;
  ring.style.top = `${(100 * brush[1]) / height}%`;
  ring.style.width = `${(100 * diameter()) / width}%`;
  size.style.setProperty("--filled", `${(100 * (size.value - size.min)) / (size.max - size.min || 1)}%`);
}

function show() {
  const percent = Math.round(100 * mask.share);
  dialog.querySelector("[role=status]").textContent = mask.empty ? "Nothing is marked yet." : `${percent || "Less than 1"} % is marked.`;
  button("undo").disabled = !mask.canUndo;
  button("clear").disabled = mask.empty;
  if (document.activeElement?.disabled) stage.focus();
  showBrush();
}

function place({ clientX, clientY }) {
  const { left, top, width, height } = stage.getBoundingClientRect();
  return [((clientX - left) / width) * mask.canvas.width, ((clientY - top) / height) * mask.canvas.height];
}

stage.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || drawing || ![0, ERASER].includes(event.button)) return;
  stage.setPointerCapture(event.pointerId);
  moveTo(...place(event));
  begin(erasing() || event.button === ERASER);
});
stage.addEventListener("pointermove", (event) => {
  if (!event.isPrimary) return;
  const passed = event.getCoalescedEvents?.() ?? [];
  for (const each of passed.length ? passed : [event]) moveTo(...place(each));
});
stage.addEventListener("lostpointercapture", end);
stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in MOVES) {
    const far = diameter() / (event.shiftKey ? 8 : 2);
    moveTo(...brush.map((at, i) => at + MOVES[event.key][i] * far));
  } else if (event.key === " ") {
    if (!drawing) begin(); // held down, it comes again and again
  } else if (event.key.toLowerCase() === "e") choose(!erasing());
  else if (event.key === "[") resize(-2);
  else if (event.key === "]") resize(2);
  else return;
  event.preventDefault();
});
stage.addEventListener("keyup", (event) => event.key === " " && end());
stage.addEventListener("blur", end);
dialog.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  undo();
});
size.addEventListener("input", showBrush);
button("erase").addEventListener("click", () => choose(!erasing()));
button("undo").addEventListener("click", undo);
button("clear").addEventListener("click", () => {
  mask.clear();
  show();
});
button("done").addEventListener("click", () => dialog.close());
