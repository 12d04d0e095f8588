// A run on the page: its heading, and a tile for each image.

import { phaseText } from "./ancestry.js";
import { sentence } from "./api.js";
import { copy, count, fromTemplate } from "./dom.js";
import { copyLink } from "./link.js";
import { ACTIVE } from "./run.js";
import { SketchBar } from "./sketches.js";

const urls = new WeakMap();

/** Return the object URL of an image's picture; the same one until the picture changes. */
export function urlOf(image) {
  if (urls.get(image)?.blob !== image.blob) {
    letGo(image);
    urls.set(image, { blob: image.blob, url: URL.createObjectURL(image.blob) });
  }
  return urls.get(image).url;
}

function letGo(image) {
  if (urls.has(image)) URL.revokeObjectURL(urls.get(image).url);
  urls.delete(image);
}

/** How long a slider that is moved by keys must rest. */
const SETTLED_MS = 500;

/** What people call an image. */
export const nameOf = ({ seed, variations }) => ["Seed", [seed, ...variations.map((one) => one.seed)].join(" + ")].join(" ");

const stem = ({ seed, variations }) => ["seed", seed, ...variations.map((one) => `v${one.seed}`)].join("-");

export const fileName = (image) => `${stem(image)}.${image.blob.type.replace("image/", "").replace("jpeg", "jpg")}`;

/** The section of one run. `actions` are { open, edit, more, vary, reach, use, generate, remove }; they take the run, and the image if they act on one. */
export class RunView {
  #run;
  #actions;
  #tiles = new Map();
  #countdown = null;
  #sketches;

  constructor(run, actions) {
    this.#run = run;
    this.#actions = actions;
    this.element = fromTemplate("run-template");
    this.element.setAttribute("aria-label", run.settings.prompt);
    this.element.querySelector("h2").textContent = run.settings.prompt;
    // As on the service's contact sheets.
    this.element.style.setProperty("--columns", Math.ceil(Math.sqrt(run.images.length)));
    for (const image of run.images) {
      const tile = new Tile(run, image, actions);
      this.#tiles.set(image, tile);
      this.element.querySelector(".tiles").append(tile.element);
    }
    run.addEventListener("image", ({ detail }) => this.#onImage(detail));
    run.addEventListener("change", () => this.#show());
    this.#sketches = new SketchBar(run, this.element.querySelector(".choosing"), () => this.#button("cancel").focus());
    this.#showFamily();
    this.#offerNearness(run.kinship);
    for (const part of this.element.querySelectorAll("header, .notice")) {
      part.addEventListener("click", (event) => this.#act(event.target.closest("button")));
    }
    this.#show();
  }

  /** Release the pictures' URLs. */
  discard() {
    clearTimeout(this.#countdown);
    this.element.remove();
    this.#run.images.forEach(letGo);
  }

  /** Show one of its images to a person. */
  reach(image) {
    this.#tiles.get(image).reach();
  }

  /** Say of relatives which picture they come from, and from which that one; each leads there. */
  #showFamily() {
    const { ancestors, kinship } = this.#run;
    const line = this.element.querySelector(".family");
    line.hidden = !ancestors.length;
    if (!ancestors.length) return;
    const links = ancestors.map((image, i) => {
      const textContent = i ? `+ ${image.variations.at(-1).seed}` : nameOf(image);
      const link = Object.assign(document.createElement("button"), { type: "button", className: "ancestor", textContent, ariaLabel: nameOf(image) });
      link.addEventListener("click", () => (link.disabled = !this.#actions.reach(this.#run, image)));
      return [i ? " › " : "Relatives of ", link];
    });
    line.replaceChildren(...links.flat(), ` at ${kinship.by.strength}`);
  }

  /** Let relatives be generated nearer or farther: the same ones, by the same seeds. */
  #offerNearness(kinship) {
    this.element.querySelector(".nearness").hidden = !kinship;
    if (!kinship) return;
    const slider = this.element.querySelector(".nearness input");
    slider.value = kinship.by.strength;
    let settling = null;
    slider.addEventListener("change", () => {
      clearTimeout(settling); // keys change it step by step, and each would be a request
      settling = setTimeout(() => {
        this.#actions.vary(this.#run, kinship.of, { ...kinship.by, strength: slider.valueAsNumber });
        slider.value = kinship.by.strength; // these stay what they are
      }, SETTLED_MS);
    });
  }

  #onImage(image) {
    this.#tiles.get(image).show();
    this.#showButtons();
  }

  #act(button) {
    const run = this.#run;
    switch (button?.dataset.action) {
      case "cancel": return void run.cancelAll();
      case "retry":
        this.#actions.generate(run, run.problem?.images ?? run.unfinished);
        return this.#button("cancel").focus(); // the one that had the focus is gone
      case "remove": return this.#actions.remove(run);
      case "use": return this.#actions.use(run);
      case "link": return void copyLink(run.again, button);
    }
  }

  #show() {
    const { settings, model, warnings } = this.#run;
    const { width, height, num_inference_steps: steps, guidance_scale: guidance } = settings;
    const sampling = [settings.scheduler, settings.sigma_schedule].map((name) => name?.replaceAll("_", " "));
    const facts = [`${width} × ${height}`, count(steps, "step"), `guidance ${guidance}`, ...sampling, model];
    if (settings.init_image) facts.push(`${settings.mask_image ? "part of" : "from"} ${settings.init_image.name}, strength ${settings.strength}`);
    for (const { name, scale } of settings.loras ?? []) facts.push(`${name} ${scale}`);
    for (const phase of settings.before ?? []) facts.push(phaseText(phase).toLowerCase());
    if (settings.pause_after) facts.push(`sketches after step ${settings.pause_after}`);
    if (settings.negative_prompt) facts.push(`without ${settings.negative_prompt}`);
    this.element.querySelector(".meta").textContent = facts.filter(Boolean).join(" · ");
    this.element.querySelector(".tiles").hidden = this.#run.refused;
    this.#showNotice(warnings);
    this.#showButtons();
  }

  #showNotice(warnings) {
    const { problem } = this.#run;
    const notice = this.element.querySelector(".notice");
    const wait = problem?.retryAt ? Math.ceil((problem.retryAt - Date.now()) / 1000) : 0;
    const when = wait > 0 ? ` There should be room again in ${wait} s.` : problem?.retryAt ? " There should be room again now." : "";
    notice.hidden = !problem && !warnings.length;
    notice.dataset.kind = problem ? "problem" : "warning";
    const text = problem ? problem.message + when : warnings.map(sentence).join(" ");
    Object.assign(notice.querySelector("p"), { textContent: text, title: text });
    Object.assign(notice.querySelector("button"), { hidden: !problem?.remedy, textContent: problem?.remedy });
    clearTimeout(this.#countdown);
    if (wait > 0) this.#countdown = setTimeout(() => this.#show(), 1000);
  }

  #showButtons() {
    const { active, problem, unfinished } = this.#run;
    this.#button("cancel").hidden = !active;
    this.#button("retry").hidden = active || Boolean(problem?.remedy) || !unfinished.length;
    this.#button("remove").hidden = active;
    this.#sketches.show();
  }

  #button(action) {
    return this.element.querySelector(`.run-buttons [data-action=${action}]`);
  }
}

class Tile {
  #run;
  #image;
  #actions;

  constructor(run, image, actions) {
    this.#run = run;
    this.#image = image;
    this.#actions = actions;
    this.element = fromTemplate("tile-template");
    this.element.querySelector(".picture").style.aspectRatio = `${run.settings.width} / ${run.settings.height}`;
    this.#get(".seed").textContent = nameOf(image);
    for (const control of this.element.querySelectorAll(".tile-buttons [title]")) control.setAttribute("aria-label", `${control.title}, ${nameOf(image).toLowerCase()}`);
    this.element.addEventListener("click", (event) => this.#act(event.target.closest("button")));
    this.show();
  }

  show() {
    const image = this.#image;
    const wasFocused = this.element.contains(document.activeElement);
    this.element.dataset.state = image.state;
    this.element.dataset.stopping = image.stopping && ACTIVE.has(image.state);
    this.element.dataset.kept = image.kept && image.state === "paused";
    this.#get(".state").textContent = stateText(image);
    this.#get(".reason").textContent = image.state === "failed" ? image.reason : "";
    this.#showPicture(image);
    this.#showProgress(image);
    if (wasFocused && !document.activeElement.checkVisibility()) this.#firstVisible()?.focus();
  }

  reach() {
    this.element.scrollIntoView({ block: "center" });
    (this.#get(".open").disabled ? this.#firstVisible() : this.#get(".open")).focus({ preventScroll: true });
  }

  #act(button) {
    const [run, image] = [this.#run, this.#image];
    switch (button?.dataset.action) {
      case "open": return image.state === "paused" ? run.choose(image) : this.#actions.open(run, image);
      case "finish": return void run.resume([image]);
      case "edit": return this.#actions.edit(run, image);
      case "copy": return void copy(String(image.seed), button, `Seed ${image.seed}`);
      case "more": return this.#actions.more(run, image);
      case "vary": return this.#actions.vary(run, image);
      case "retry": return this.#actions.generate(run, [image]);
      case "cancel": return void run.cancelImage(image);
    }
  }

  #showPicture(image) {
    const [open, img, download] = [this.#get(".open"), this.#get("img"), this.#get("a")];
    const done = image.state === "done";
    const src = done ? urlOf(image) : image.state === "failed" ? null : image.preview;
    if (src && img.getAttribute("src") !== src) img.src = src;
    open.hidden = !src;
    const name = nameOf(image).toLowerCase();
    const sketch = this.#run.sketches.includes(image);
    img.alt = done ? `${this.#run.settings.prompt}, ${name}` : `${image.state === "paused" ? "Sketch" : "Preview"} of ${name}`;
    open.disabled = !done && !sketch;
    open.title = done ? "Full size" : sketch ? "Keep this sketch" : "";
    open.ariaPressed = sketch ? image.kept : null;
    if (done) Object.assign(download, { href: src, download: fileName(image) });
  }

  #showProgress(image) {
    const { state, step, steps } = image;
    const ring = this.#get(".ring");
    ring.setAttribute("aria-label", nameOf(image));
    ring.setAttribute("aria-valuemax", steps || this.#run.settings.num_inference_steps);
    ring.setAttribute("aria-valuenow", state === "done" ? steps : step);
    ring.hidden = state !== "running";
    ring.style.setProperty("--done", steps ? step / steps : 0);
  }

  #firstVisible() {
    return [...this.element.querySelectorAll(".tile-buttons > *")].find((control) => control.checkVisibility());
  }

  #get(selector) {
    return this.element.querySelector(selector);
  }
}

function stateText({ state, position, step, steps, stopping, kept, finishing, passedOver, expired }) {
  if (stopping && ACTIVE.has(state)) return passedOver ? "Not kept" : "Cancelling";
  switch (state) {
    case "starting": return step ? "Going on" : "Starting";
    case "queued": return `Queued, position ${position}`;
    case "running": return `Step ${step} of ${steps}`;
    case "paused": return finishing ? "Going on" : kept ? "Sketch, kept" : "Sketch";
    case "done": return "Done";
    case "failed": return "Failed";
    case "cancelled": return expired ? "Expired" : passedOver ? "Not kept" : "Cancelled";
  }
}
