// The form's part for a picture to go on from: choose, drop or paste it, paint a mask over it, remove it.

import { announce, byId } from "./dom.js";
import { Mask } from "./mask.js";
import { paint } from "./painter.js";
import { Unusable, opened, pictureAmong } from "./picture.js";

const TYPED = "input, textarea";

/** Events: `change` (of the picture or its mask), `chosen` (a person gave a picture), and `refused` (detail: why a file is not used). */
export class Start extends EventTarget {
  #element;
  #largestSide;
  #picture = null; // as `opened` returns it
  #mask = null;
  #opening = 0; // counts what was begun to be opened: only the last counts

  /** `largestSide` tells how many pixels a side of what the service generates may have. */
  constructor(element, largestSide) {
    super();
    this.#element = element;
    this.#largestSide = largestSide;
    this.#get("input").addEventListener("change", ({ target }) => {
      this.#take(target.files);
      target.value = ""; // so that the same file can be chosen again
    });
    this.#get("[data-action=paint]").addEventListener("click", () => this.#paint());
    this.#get("[data-action=remove]").addEventListener("click", () => {
      this.#put(null);
      this.#get("input").focus(); // the button that had the focus is gone
      announce("Picture removed");
    });
    this.#takeDropped();
    addEventListener("paste", (event) => this.#takePasted(event));
  }

  /** The picture, with its `width` and `height`; null if there is none. */
  get picture() {
    return this.#picture?.bitmap ?? null;
  }

  get masked() {
    return this.#mask !== null && !this.#mask.empty;
  }

  /** Return the files of a request: { init_image, mask_image }, without what there is not. */
  async read() {
    if (!this.#picture) return {};
    const mask = await this.#mask?.file();
    return { init_image: this.#picture.file, ...(mask ? { mask_image: mask } : {}) };
  }

  /** Put in the files of a request, as `read` returns them. */
  async fill({ init_image = null, mask_image = null }) {
    this.expect(false);
    if (init_image) await this.#open(init_image, mask_image);
    else this.#put(null);
  }

  /** Say that settings came without the picture that belongs to them, or no longer say it. */
  expect(missing) {
    this.#get(".missing").hidden = !missing;
  }

  #takeDropped() {
    const files = (event) => event.dataTransfer?.types.includes("Files");
    const mark = (on) => this.#element.classList.toggle("dropping", on);
    addEventListener("dragover", (event) => {
      if (!files(event)) return;
      event.preventDefault(); // else the browser leaves the page for the file
      mark(!busy());
    });
    addEventListener("dragleave", (event) => event.relatedTarget ?? mark(false));
    addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      mark(false);
      if (!busy()) this.#take(event.dataTransfer.files);
    });
  }

  #takePasted(event) {
    const { files, types } = event.clipboardData;
    if (!files.length || busy()) return;
    if (types.includes("text/plain") && event.target.closest?.(TYPED)) return; // a text with its looks, as office programs copy it
    event.preventDefault();
    this.#take(files);
  }

  async #take(files) {
    const file = pictureAmong(files);
    if (!file || !(await this.#open(file))) return;
    this.expect(false);
    this.dispatchEvent(new Event("chosen"));
    announce(`${this.#picture.name}: to go on from`);
  }

  /** Return whether the file is a picture, and still wanted now that it is open. */
  async #open(file, mask = null) {
    const turn = ++this.#opening;
    try {
      const picture = await opened(file, this.#largestSide());
      const base = mask && (await createImageBitmap(mask));
      if (turn !== this.#opening) return false;
      this.#put(picture, base && new Mask(picture.bitmap, base));
      return true;
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      this.dispatchEvent(new CustomEvent("refused", { detail: error.message }));
      return false;
    }
  }

  async #paint() {
    this.#mask ??= new Mask(this.#picture.bitmap);
    await paint(this.#picture.bitmap, this.#mask);
    this.#show();
  }

  #put(picture, mask = null) {
    this.#opening++;
    this.#picture?.bitmap.close();
    [this.#picture, this.#mask] = [picture, mask];
    this.#show();
  }

  #show() {
    const [picture, masked] = [this.#picture, this.masked];
    this.#element.classList.toggle("chosen", picture !== null);
    for (const part of this.#element.querySelectorAll("[data-when]")) part.toggleAttribute("hidden", (part.dataset.when === "chosen") !== (picture !== null));
    this.#get("input").ariaLabel = picture ? "Choose another picture" : null;
    this.#get("[data-action=paint] span").textContent = masked ? "Change the mask" : "Paint a mask";
    // Disabled fields are no part of the form: neither checked nor sent.
    for (const [id, on] of [["of-picture", picture !== null], ["of-mask", masked]]) Object.assign(byId(id), { hidden: !on, disabled: !on });
    if (picture) this.#showPicture(picture);
    this.dispatchEvent(new Event("change"));
  }

  #showPicture({ bitmap, name, scaled }) {
    this.#get(".name").textContent = name;
    this.#get(".facts").textContent = `${bitmap.width} × ${bitmap.height}${scaled ? ", scaled down" : ""}`;
    const canvas = this.#get("canvas");
    const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    const place = [(canvas.width - width) / 2, (canvas.height - height) / 2, width, height];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "white"; // as the service shows what is transparent
    context.fillRect(...place);
    context.drawImage(bitmap, ...place);
    context.globalAlpha = 0.7;
    if (this.#mask) context.drawImage(this.#mask.canvas, ...place);
    context.globalAlpha = 1;
  }

  #get(selector) {
    return this.#element.querySelector(selector);
  }
}

/** Whether a dialog is open: it is about something else. */
const busy = () => document.querySelector("dialog[open]") !== null;
