// The API key: asked for when the service wants one, kept for this tab only.

import { byId } from "./dom.js";

const NAME = "parallel-sdxl-key";
const SENDABLE = /^[\x20-\x7e]+$/; // fetch throws on most else in a header

let asking = null;

export const key = () => sessionStorage.getItem(NAME);

/** Run an action that throws errors with a `status`; on 401 ask for a key and run it again, until it passes or the person declines. */
export async function withKey(action) {
  for (;;) {
    const tried = key();
    try {
      return await action();
    } catch (error) {
      if (error.status !== 401) throw error;
      if (key() !== tried) continue; // another action got one meanwhile
      forgetKey();
      if (!(await ask(tried ? "The service does not know this key." : ""))) throw error;
    }
  }
}

export function forgetKey() {
  sessionStorage.removeItem(NAME);
  showWhetherKept();
}

export function showWhetherKept() {
  byId("forget-key").hidden = key() === null;
}

/** Open the dialog, once for simultaneous callers; resolve to whether a key was entered. */
function ask(complaint) {
  asking ??= new Promise((resolve) => {
    const [dialog, input, error] = [byId("key"), byId("key-input"), byId("key-error")];
    const complain = (text) => {
      error.textContent = text;
      error.hidden = !text;
    };
    complain(complaint);
    input.value = "";
    dialog.returnValue = "";
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const given = input.value.trim();
      if (!SENDABLE.test(given)) {
        complain("This cannot be the key: a key has only English letters, digits and common signs.");
        return input.select();
      }
      sessionStorage.setItem(NAME, given);
      dialog.close("given");
    };
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => {
      asking = null;
      showWhetherKept();
      resolve(dialog.returnValue === "given");
    };
    dialog.showModal();
  });
  return asking;
}
