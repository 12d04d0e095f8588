// The form's part for what a picture goes back to: variations and the phases before. Links and pictures bring them; they can be removed.

import { announce, byId, fromTemplate } from "./dom.js";

const TEXTS = {
  variations: ({ seed, strength }) => `Moved towards seed ${seed}, by ${strength}`,
  before: phaseText,
};

/** The parts of a request, lists each, that it is about. */
export const PARTS = Object.keys(TEXTS);

/** Say what holds up to a step. */
export function phaseText({ until_step, ...settings }) {
  const said = Object.entries(settings).filter(([, value]) => value !== null);
  return `Up to step ${until_step}: ${said.map(([name, value]) => (name === "prompt" ? value : `${name.replaceAll("_", " ")} ${value}`)).join(", ")}`;
}

/** Return what a link says of a part; nothing if it is no list of objects. The service says what else is wrong. */
export function fromText(text) {
  try {
    return JSON.parse(text).map((each) => ({ ...each }));
  } catch {
    return [];
  }
}

export class Ancestry {
  #element;
  #values = {};

  constructor(element) {
    this.#element = element;
    this.fill({});
  }

  /** Return those parts that there are, as a request has them. */
  read() {
    return Object.fromEntries(PARTS.filter((part) => this.#values[part].length).map((part) => [part, this.#values[part]]));
  }

  fill(values) {
    this.#values = Object.fromEntries(PARTS.map((part) => [part, values[part] ?? []]));
    const items = PARTS.flatMap((part) => this.#values[part].map((value) => this.#item(part, value)));
    this.#element.querySelector("ul").replaceChildren(...items);
    this.#element.hidden = !items.length;
  }

  #item(part, value) {
    const item = fromTemplate("ancestor-template");
    const button = item.querySelector("button");
    const text = TEXTS[part](value);
    item.querySelector("span").textContent = text;
    button.ariaLabel = `Remove: ${text}`;
    button.addEventListener("click", () => {
      this.fill({ ...this.#values, [part]: this.#values[part].filter((each) => each !== value) });
      byId("seed").focus(); // the button that had the focus is gone
      announce("Removed");
    });
    return item;
  }
}
