// The settings form: bounds and defaults from the service, values to and from a URL.

import { count } from "./dom.js";

const TEXTS = ["prompt", "negative_prompt"];
const NUMBERS = ["num_images", "width", "height", "num_inference_steps", "guidance_scale", "seed"];
const CHOICES = ["scheduler", "output_format"];
const NAMES = [...TEXTS, ...NUMBERS, ...CHOICES];

const SIDES = { width: "Width", height: "Height" };
const SHAPES = [["Square", 1], ["Landscape 4:3", 4 / 3], ["Wide 16:9", 16 / 9], ["Portrait 3:4", 3 / 4], ["Tall 9:16", 9 / 16]];

export class Settings {
  #form;
  #defaults = {};
  #sizes = [];

  constructor(form) {
    this.#form = form;
    form.addEventListener("input", (event) => this.#mirror(event.target));
  }

  /** Take bounds and defaults from the JSON Schema of the request body and fill the form; keep what was typed meanwhile. */
  describe(properties, values) {
    const typed = NAMES.map((name) => [name, this.#field(name).value]).filter(([, value]) => value !== "");
    for (const name of NAMES) {
      const schema = notNull(properties[name]);
      this.#defaults[name] = schema.default ?? "";
      if (CHOICES.includes(name)) this.#offer(name, schema.enum);
      else this.#bound(name, schema);
    }
    this.#offerShapes(properties);
    this.fill({ ...values, ...Object.fromEntries(typed) });
  }

  /** Fill the form; fields not in `values` get their defaults. */
  fill(values) {
    for (const name of NAMES) {
      const field = this.#field(name);
      const value = values[name] ?? this.#defaults[name];
      if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value)) field.value = value;
    }
    for (const name of NAMES) this.#mirror(this.#field(name));
    this.clearErrors();
  }

  /** Put one value in, as if it had been typed. */
  set(name, value) {
    this.#field(name).value = value;
    this.#mirror(this.#field(name));
    this.#showError(name, "");
  }

  /** Return the settings, `seed` and `scheduler` null where left open; null, with the reason beside each field, if something is wrong. */
  read() {
    this.clearErrors();
    for (const name of TEXTS) this.#field(name).setCustomValidity(this.#tooLong(name));
    if (!this.#field("prompt").value.trim()) this.#field("prompt").setCustomValidity("Say what to generate.");
    const wrong = NAMES.filter((name) => !this.#field(name).validity.valid);
    for (const name of wrong) this.#showError(name, this.#complaint(name));
    if (wrong.length) {
      this.#reach(wrong[0]);
      return null;
    }
    return this.#values();
  }

  /** Browsers check maxlength only for typed text, not for text from a link. */
  #tooLong(name) {
    const { value, maxLength, labels } = this.#field(name);
    const length = [...value].length; // as the service counts: not in UTF-16 units
    if (maxLength < 0 || length <= maxLength) return "";
    return `${labels[0].textContent}: at most ${count(maxLength, "character")}, and this has ${length}.`;
  }

  #complaint(name) {
    const { min, max, step, validationMessage } = this.#field(name);
    return SIDES[name] ? `${SIDES[name]}: a multiple of ${step}, from ${min} to ${max}.` : validationMessage;
  }

  /** Show the service's message about a field of the request (`param`); return whether the form has that field. */
  reject(param, message) {
    const name = param?.split(".")[0] === "seeds" ? "seed" : param;
    if (!NAMES.includes(name)) return false;
    this.#showError(name, message);
    this.#reach(name);
    return true;
  }

  clearErrors() {
    for (const name of NAMES) this.#showError(name, "");
  }

  #values() {
    const values = {};
    for (const name of TEXTS) values[name] = this.#field(name).value;
    for (const name of NUMBERS) values[name] = this.#field(name).value === "" ? null : this.#field(name).valueAsNumber;
    for (const name of CHOICES) values[name] = this.#field(name).value || null;
    return values;
  }

  #field(name) {
    return this.#form.elements[name];
  }

  #bound(name, schema) {
    const field = this.#field(name);
    if (schema.maxLength) field.maxLength = schema.maxLength;
    const max = schema.maximum ?? (schema.exclusiveMaximum === undefined ? undefined : schema.exclusiveMaximum - 1);
    const slider = this.#form.querySelector(`[data-for=${name}]`);
    for (const input of slider ? [field, slider] : [field]) {
      if (schema.minimum !== undefined) input.min = schema.minimum;
      if (max !== undefined) input.max = max;
      input.step = schema.multipleOf ?? (input.step || 1);
    }
  }

  #offer(name, options) {
    const field = this.#field(name);
    const labels = [...field.querySelectorAll("option[value='']")];
    field.replaceChildren(...labels, ...options.map((option) => new Option(option.replaceAll("_", " "), option)));
  }

  /** Offer shapes with about as many pixels as the default size. */
  #offerShapes({ width, height }) {
    const pixels = width.default * height.default;
    const side = (length, { minimum, maximum, multipleOf }) => Math.min(maximum, Math.max(minimum, Math.round(length / multipleOf) * multipleOf));
    this.#sizes = SHAPES.map(([name, ratio]) => [name, side(Math.sqrt(pixels * ratio), width), side(Math.sqrt(pixels / ratio), height)]);
    const options = this.#sizes.map(([name, w, h]) => new Option(`${name}, ${w} × ${h}`, `${w}x${h}`));
    this.#form.elements.shape.replaceChildren(...options, new Option("Another size", ""));
  }

  /** Keep controls of the same value in sync: number and slider, shape and sides. */
  #mirror(input) {
    if (input.id === "shape") {
      const [width, height] = input.value.split("x");
      if (height) this.#form.elements.width.value = width;
      if (height) this.#form.elements.height.value = height;
      else this.#form.elements.width.select();
    } else if (input.dataset.for) {
      this.#field(input.dataset.for).value = input.value;
      this.#showError(input.dataset.for, "");
    } else {
      this.#showError(input.name, "");
      const slider = this.#form.querySelector(`[data-for=${input.name}]`);
      if (slider) slider.value = input.value;
    }
    const size = `${this.#field("width").value}x${this.#field("height").value}`;
    const known = this.#sizes.some(([, width, height]) => `${width}x${height}` === size);
    this.#form.elements.shape.value = known ? size : "";
    for (const slider of this.#form.querySelectorAll("[data-for]")) {
      slider.style.setProperty("--filled", `${(100 * (slider.value - slider.min)) / (slider.max - slider.min || 1)}%`);
    }
  }

  #showError(name, message) {
    const field = this.#field(name);
    const id = `${name}-error`;
    document.getElementById(id)?.remove();
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
    if (!message) return;
    const error = Object.assign(document.createElement("p"), { id, className: "error", textContent: message });
    field.closest(".field").append(error);
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", id);
  }

  #reach(name) {
    const field = this.#field(name);
    const hidden = field.closest("details");
    if (hidden) hidden.open = true;
    field.focus();
  }
}

/** Return the URL of this page that fills the form with these settings. A fragment: prompts stay out of servers' logs. */
export function toUrl(settings) {
  const set = NAMES.filter((name) => settings[name] !== null && settings[name] !== "");
  const query = new URLSearchParams(set.map((name) => [name, settings[name]]));
  return `${location.origin}${location.pathname}#${query}`;
}

/** Return the settings in this page's URL, as texts. */
export function fromUrl() {
  const query = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(NAMES.filter((name) => query.has(name)).map((name) => [name, query.get(name)]));
}

const notNull = (schema) => schema.anyOf?.find((kind) => kind.type !== "null") ?? schema;
