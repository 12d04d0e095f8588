// Shared helpers for the document.

export const byId = (id) => document.getElementById(id);

export const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);

export const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

/** Announce a message to screen readers: for events people wait for, not for every step. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Copy a text and show success on the button. */
export async function copy(text, button, what) {
  if (!(await write(text, button))) return announce(`The browser does not let this page copy: ${text}`);
  announce(`${what} copied`);
  const icon = button.querySelector("use");
  icon.dataset.own ??= icon.getAttribute("href");
  icon.setAttribute("href", icon.dataset.own.replace(/#.*/, "#check"));
  setTimeout(() => icon.setAttribute("href", icon.dataset.own), 1500);
}

async function write(text, button) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  // Over plain HTTP, as in a local network, browsers only allow the old way.
  const area = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" });
  (button.closest("dialog") ?? document.body).append(area); // an open dialog makes all else inert
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  button.focus();
  return copied;
}
