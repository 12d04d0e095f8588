// The form's part for LoRAs: add one of the service's, say how strongly it counts, put its trigger words into the prompt.

import { loraFiles } from "./api.js";
import { announce, byId, fromTemplate } from "./dom.js";

/** Return LoRAs as one text, as links have them. */
export const toText = (loras) => JSON.stringify(loras.map(({ name, scale }) => [name, scale]));

/** Return the LoRAs in a text of a link; none if it holds something else. */
export function fromText(text) {
  try {
    return JSON.parse(text).map(([name, scale]) => ({ name: String(name), scale: Number(scale) }));
  } catch {
    return [];
  }
}

/** Events: `words` (detail: trigger words that a person wants in the prompt). */
export class Loras extends EventTarget {
  #element;
  #files = []; // as the service lists them
  #most = Infinity;
  #model = null; // whose they are, where the service has several

  constructor(element) {
    super();
    this.#element = element;
    for (const event of ["pointerdown", "focus"]) this.#select.addEventListener(event, () => this.refresh());
    this.#select.addEventListener("change", () => this.#add(this.#select.value));
    element.addEventListener("input", (event) => event.stopPropagation()); // they are no fields of the settings
    this.#list.addEventListener("input", ({ target }) => this.#mirror(target));
    this.#list.addEventListener("click", ({ target }) => this.#act(target.closest("button")));
  }

  /** Take a model's, and what the JSON Schema of the request body says of their number. */
  follow(model, { maxItems = Infinity }) {
    this.#model = model;
    this.#most = maxItems;
    return this.refresh();
  }

  /** Ask the service what it has: files may have been added to its folder. */
  async refresh() {
    const model = this.#model;
    const files = await loraFiles(model).catch(() => this.#files);
    if (model !== this.#model) return; // another was chosen meanwhile
    if (JSON.stringify(files) === JSON.stringify(this.#files)) return;
    this.#files = files;
    this.fill(this.#values());
  }

  /** Return { loras }, {} without any; null, with the reason beside the field, if a scale is wrong. */
  read() {
    this.reject("");
    const wrong = [...this.#list.querySelectorAll("[type=number]")].find((field) => !field.validity.valid);
    if (wrong) {
      this.reject(wrong.validationMessage, wrong);
      return null;
    }
    const loras = this.#values();
    return loras.length ? { loras } : {};
  }

  fill(loras = []) {
    this.#list.replaceChildren(...loras.map((lora) => this.#item(lora)));
    this.reject("");
    this.#offer();
  }

  /** Show the service's message about them, or why a scale is wrong; an empty one takes it away. */
  reject(message, field = this.#fieldIn(message)) {
    byId("loras-error")?.remove();
    for (const marked of this.#element.querySelectorAll("[aria-invalid]")) {
      marked.removeAttribute("aria-invalid");
      marked.removeAttribute("aria-describedby");
    }
    if (!message) return;
    this.#element.append(Object.assign(document.createElement("p"), { id: "loras-error", className: "error", textContent: message }));
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", "loras-error");
    field.focus();
  }

  /** Return the field of the LoRA that a message names, or the first. */
  #fieldIn(message) {
    const items = [...this.#list.children];
    const item = items.find(({ dataset }) => message.includes(`"${dataset.name}"`)) ?? items[0];
    return item?.querySelector("[type=number]") ?? this.#select;
  }

  #values() {
    return [...this.#list.children].map((item) => ({ name: item.dataset.name, scale: item.querySelector("[type=number]").valueAsNumber }));
  }

  #add(name) {
    const item = this.#item({ name, scale: 1 });
    this.#list.append(item);
    this.reject("");
    this.#offer();
    item.querySelector("[type=number]").focus();
    announce(`${name} added`);
  }

  #act(button) {
    const item = button?.closest("li");
    if (button?.dataset.words) this.dispatchEvent(new CustomEvent("words", { detail: button.dataset.words }));
    if (button?.dataset.action !== "remove") return;
    item.remove();
    this.reject("");
    this.#offer();
    this.#select.focus(); // the button that had the focus is gone
    announce(`${item.dataset.name} removed`);
  }

  #item({ name, scale }) {
    const item = fromTemplate("lora-template");
    item.dataset.name = name;
    item.querySelector(".name").textContent = item.querySelector(".name").title = name;
    const remove = item.querySelector("[data-action=remove]");
    remove.title = remove.ariaLabel = `Remove ${name}`;
    const number = item.querySelector("[type=number]");
    number.ariaLabel = `Scale of ${name}`;
    number.value = scale;
    this.#mirror(number);
    const words = this.#files.find((file) => file.name === name)?.trigger_words ?? [];
    item.querySelector(".words").replaceChildren(...words.map(wordButton));
    return item;
  }

  /** Keep the number and the slider of a scale in sync. */
  #mirror(input) {
    const [range, number] = input.closest(".slider").children;
    if (input === range) number.value = range.value;
    else range.value = number.value;
    range.style.setProperty("--filled", `${(100 * (range.value - range.min)) / (range.max - range.min)}%`);
  }

  #offer() {
    const chosen = new Set(this.#values().map(({ name }) => name));
    const options = this.#files.filter(({ name }) => !chosen.has(name)).map(({ name, unusable }) => {
      const option = new Option(unusable ? `${name} (cannot be used)` : name, name);
      return Object.assign(option, { disabled: unusable !== null, title: unusable ?? "" });
    });
    const full = chosen.size >= this.#most;
    this.#select.replaceChildren(new Option(full ? `At most ${this.#most}` : "Add one", ""), ...(full ? [] : options));
    this.#element.hidden = !this.#files.length && !chosen.size;
  }

  get #select() {
    return this.#element.querySelector("select");
  }

  get #list() {
    return this.#element.querySelector("ul");
  }
}

function wordButton(words) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: words });
  button.dataset.words = words;
  button.title = button.ariaLabel = `Put “${words}” into the prompt`;
  return button;
}
