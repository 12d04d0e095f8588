// The settings form: bounds and defaults from the service, and what is wrong with a value.

import { byId, count } from "./dom.js";

const MODEL = "model";
const TEXTS = ["prompt", "negative_prompt"];
/** The step after which images stop as sketches: only there if a person wants them. */
const SKETCH = "pause_after";
const SKETCH_SHARE = 1 / 3;
const NUMBERS = ["num_images", "width", "height", "num_inference_steps", "guidance_scale", "seed", "strength", "mask_blur", "padding_mask_crop", SKETCH];
const CHOICES = ["scheduler", "sigma_schedule", "output_format"];
const SWITCHES = ["keep_outside"];
export const NAMES = [MODEL, ...TEXTS, ...NUMBERS, ...CHOICES, ...SWITCHES];
const FILE = "init_image";

/** Where the form shows what is wrong with a field of the request that it does not have. */
const BESIDE = { seeds: "seed", mask_image: FILE };

const SIDES = { width: "Width", height: "Height" };
const SHAPES = [["Square", 1], ["Landscape 4:3", 4 / 3], ["Wide 16:9", 16 / 9], ["Portrait 3:4", 3 / 4], ["Tall 9:16", 9 / 16]];

export class Settings {
  #form;
  #onModel;
  #models = [];
  #model = null; // whose bounds and defaults the form has
  #defaults = {};
  #sides = null; // the schemas of width and height
  #picture = null; // the size of the picture to go on from
  #sizes = [];
  #schedulers = null; // those that the served model takes
  #levels = []; // all schedules of noise levels

  /** `onModel` is called with each model that the form is then about: null where the service has one, and the properties of its requests. */
  constructor(form, onModel) {
    this.#form = form;
    this.#onModel = onModel;
    form.addEventListener("input", (event) => this.#mirror(event.target));
    form.addEventListener("change", ({ target }) => target.name === MODEL && this.#changeModel());
  }

  /** Take the models with their bounds and defaults and fill the form; keep what was typed meanwhile. */
  describe(models, values) {
    const typed = [...TEXTS, ...NUMBERS, ...CHOICES].map((name) => [name, this.#field(name).value]).filter(([, value]) => value !== "");
    const field = this.#field(MODEL);
    this.#models = models;
    field.disabled = field.closest(".field").hidden = models.length < 2;
    field.replaceChildren(...models.map(({ name }) => new Option(name ?? "")));
    this.fill({ ...values, ...Object.fromEntries(typed), ...this.#sketch() });
  }

  /** Fill the form; fields not in `values` get their defaults, those of the model that `values` name. */
  fill(values) {
    if (!this.#models.length) return;
    this.#follow(this.#models.find(({ name }) => name === values.model) ?? this.#models[0]);
    for (const name of NAMES.filter((name) => name !== MODEL)) {
      const field = this.#field(name);
      const value = values[name] ?? this.#defaults[name];
      if (SWITCHES.includes(name)) field.checked = String(value) === "true"; // a text, from a link
      else if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value)) field.value = value;
      if (name === "scheduler") this.#offerLevels();
    }
    byId("sketch").checked = (values[SKETCH] ?? null) !== null;
    for (const name of NAMES) this.#mirror(this.#field(name));
    if (this.#field(SKETCH).value === this.#field(SKETCH).dataset.usual) this.#field(SKETCH).value = ""; // to follow the steps
    this.clearErrors();
  }

  /** Put one value in, as if it had been typed. */
  set(name, value) {
    this.#field(name).value = value;
    this.#mirror(this.#field(name));
    this.#showError(name, "");
  }

  /** Name what the service is asked for where a field is left empty. */
  usually(name, value) {
    const field = this.#field(name);
    field.placeholder = field.dataset.usual = value;
    this.#mirror(field);
  }

  /** Offer the size for a picture to go on from beside the usual ones; null: for none. */
  offerSizeOf(picture) {
    this.#picture = picture;
    this.#offerShapes();
  }

  /** Put in the size of the picture to go on from. */
  takeSizeOf(picture) {
    if (!this.#sides) return;
    const [width, height] = sizeOf(picture, this.#sides);
    this.set("width", width);
    this.set("height", height);
  }

  /** How many pixels a side may have. */
  get largestSide() {
    return this.#sides ? Math.max(this.#sides.width.maximum, this.#sides.height.maximum) : 1024;
  }

  /**
   * Return the settings, `seed`, `scheduler` and `sigma_schedule` null where left open; null, with the reason beside each field, if something is
   * wrong. Settings of a picture to go on from are only there if one is.
   */
  read() {
    this.clearErrors();
    for (const name of TEXTS) this.#field(name).setCustomValidity(this.#tooLong(name));
    if (!this.#field("prompt").value.trim()) this.#field("prompt").setCustomValidity("Say what to generate.");
    const wrong = this.#used().filter((name) => !this.#field(name).validity.valid);
    for (const name of wrong) this.#showError(name, this.#complaint(name));
    if (wrong.length) {
      this.#reach(wrong[0]);
      return null;
    }
    return this.#values();
  }

  /** Take a model's bounds and defaults. */
  #follow(model) {
    this.#field(MODEL).value = model.name ?? "";
    if (model === this.#model) return;
    this.#model = model;
    const { properties } = model.request;
    for (const name of NAMES.filter((name) => name !== MODEL)) {
      const schema = notNull(properties[name]);
      this.#defaults[name] = schema.default ?? "";
      if (CHOICES.includes(name)) this.#offer(name, schema.enum);
      else if (!SWITCHES.includes(name)) this.#bound(name, schema);
    }
    this.#levels = notNull(properties.sigma_schedule).enum;
    this.#schedulers = null;
    this.#offerLevels();
    this.#sides = { width: properties.width, height: properties.height };
    this.#offerShapes();
    this.#onModel(this.#named(model), properties);
  }

  /** Offer only the schedulers that a model takes; null: it could not say, and all are. */
  takeSchedulers(name, schedulers) {
    if (!schedulers || name !== this.#named(this.#model)) return; // another was chosen meanwhile
    this.#schedulers = schedulers;
    const field = this.#field("scheduler");
    const before = field.value;
    this.#offer("scheduler", schedulers.map((scheduler) => scheduler.name));
    field.value = before;
    if (field.selectedIndex < 0) field.value = "";
    this.#offerLevels();
  }

  #named = (model) => (this.#models.length > 1 ? model.name : null);

  /** A person has chosen another model: what was left at the defaults becomes its own, the rest stays. */
  #changeModel() {
    const said = NAMES.filter((name) => name !== SKETCH).map((name) => [name, SWITCHES.includes(name) ? String(this.#field(name).checked) : this.#field(name).value]);
    this.fill({ ...Object.fromEntries(said.filter(([name, value]) => value !== String(this.#defaults[name]))), ...this.#sketch() });
  }

  /** Return what the form says of sketches, as `fill` takes it: an empty text is the usual step. */
  #sketch = () => (byId("sketch").checked ? { [SKETCH]: this.#field(SKETCH).value } : {});

  /** Bound the step of sketches by those that there are, without those that a picture's strength leaves out. */
  #boundSketch() {
    const field = this.#field(SKETCH);
    const strength = this.#field("strength").matches(":disabled") ? 1 : this.#value("strength");
    const steps = Number(this.#field("num_inference_steps").value);
    const first = steps - Math.floor(steps * strength);
    field.placeholder = field.dataset.usual = first + Math.max(1, Math.round((steps - first) * SKETCH_SHARE));
    const slider = this.#form.querySelector(`[data-for=${SKETCH}]`);
    for (const input of [field, slider]) Object.assign(input, { min: first + 1, max: steps - 1 });
    slider.value = field.value || field.dataset.usual;
    Object.assign(byId("of-sketch"), { hidden: !byId("sketch").checked, disabled: !byId("sketch").checked });
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
    const name = BESIDE[param?.split(".")[0]] ?? param;
    if (name !== FILE && !this.#used().includes(name)) return false;
    this.#showError(name, message);
    this.#reach(name);
    return true;
  }

  clearError(name) {
    this.#showError(name, "");
  }

  clearErrors() {
    for (const name of [...NAMES, FILE]) this.#showError(name, "");
  }

  #values() {
    return Object.fromEntries(this.#used().map((name) => [name, this.#value(name)]));
  }

  #value(name) {
    const { value, valueAsNumber, checked, dataset } = this.#field(name);
    if (TEXTS.includes(name)) return value;
    if (name === MODEL || CHOICES.includes(name)) return value || null;
    if (SWITCHES.includes(name)) return checked;
    return value !== "" ? valueAsNumber : dataset.usual === undefined ? null : Number(dataset.usual);
  }

  /** Return the fields that mean something now. */
  #used() {
    return NAMES.filter((name) => !this.#field(name).matches(":disabled"));
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

  /** Offer the schedules of noise levels that the chosen scheduler can follow. */
  #offerLevels() {
    const chosen = this.#field("scheduler").value;
    const scheduler = this.#schedulers?.find(({ name, default: usual }) => (chosen ? name === chosen : usual));
    const field = this.#field("sigma_schedule");
    const before = field.value;
    this.#offer("sigma_schedule", scheduler?.sigma_schedules ?? this.#levels);
    field.value = before;
    if (field.selectedIndex < 0) field.value = "";
  }

  /** Offer shapes with about as many pixels as the default size, and that of the picture if no other has its size. */
  #offerShapes() {
    if (!this.#sides) return;
    const { width, height } = this.#sides;
    const pixels = width.default * height.default;
    this.#sizes = SHAPES.map(([name, ratio]) => [name, side(Math.sqrt(pixels * ratio), width), side(Math.sqrt(pixels / ratio), height)]);
    const own = this.#picture && ["As the picture", ...sizeOf(this.#picture, this.#sides)];
    if (own && !this.#sizes.some(([, w, h]) => w === own[1] && h === own[2])) this.#sizes.push(own);
    const options = this.#sizes.map(([name, w, h]) => new Option(`${name}, ${w} × ${h}`, `${w}x${h}`));
    this.#form.elements.shape.replaceChildren(...options, new Option("Another size", ""));
    this.#mirror(this.#field("width"));
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
      if (input.name === "scheduler") this.#offerLevels();
      this.#showError(input.name, "");
      const slider = this.#form.querySelector(`[data-for=${input.name}]`);
      if (slider) slider.value = input.value || input.dataset.usual;
    }
    this.#boundSketch();
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
    field.setAttribute("aria-describedby", [field.dataset.hint, message && id].filter(Boolean).join(" "));
    if (!message) return;
    const error = Object.assign(document.createElement("p"), { id, className: "error", textContent: message });
    field.closest(".field").append(error);
    field.setAttribute("aria-invalid", "true");
  }

  #reach(name) {
    const field = this.#field(name);
    const hidden = field.closest("details");
    if (hidden) hidden.open = true;
    field.focus();
  }
}

/** Return the width and height that the service gives what goes on from a picture where none are asked for. */
function sizeOf(picture, { width, height }) {
  const fits = ([length, { minimum, maximum, multipleOf }]) => length - (length % multipleOf) >= minimum && length - (length % multipleOf) <= maximum;
  const sides = [[picture.width, width], [picture.height, height]];
  const scale = sides.every(fits) ? 1 : Math.sqrt((width.default * height.default) / (picture.width * picture.height));
  return sides.map(([length, schema]) => side(length * scale, schema, Math.floor));
}

const side = (length, { minimum, maximum, multipleOf }, round = Math.round) => Math.min(maximum, Math.max(minimum, round(length / multipleOf) * multipleOf));

const notNull = (schema) => schema.anyOf?.find((kind) => kind.type !== "null") ?? schema;
