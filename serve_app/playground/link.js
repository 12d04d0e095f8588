// Links to settings. A fragment: prompts stay out of servers' logs. Pictures are too large for one, and stay out of it.

import { PARTS, fromText as partFrom } from "./ancestry.js";
import { copy } from "./dom.js";
import { fromText, toText } from "./loras.js";
import { NAMES } from "./settings.js";

/** Return the URL of this page that fills the form with these settings. */
export function toUrl(settings) {
  const set = NAMES.filter((name) => (settings[name] ?? "") !== "");
  const query = new URLSearchParams(set.map((name) => [name, settings[name]]));
  for (const part of PARTS) if (settings[part]?.length) query.set(part, JSON.stringify(settings[part]));
  if (settings.loras?.length) query.set("loras", toText(settings.loras));
  return `${location.origin}${location.pathname}#${query}`;
}

/** Return the settings in this page's URL, as texts. */
export function fromUrl() {
  const query = new URLSearchParams(location.hash.slice(1));
  const values = Object.fromEntries(NAMES.filter((name) => query.has(name)).map((name) => [name, query.get(name)]));
  for (const part of PARTS) if (query.has(part)) values[part] = partFrom(query.get(part));
  return query.has("loras") ? { ...values, loras: fromText(query.get("loras")) } : values;
}

/** Whether settings of a link belong to a picture: only then they have a strength. */
export const wantsPicture = (values) => "strength" in values;

export const copyLink = (settings, button) => copy(toUrl(settings), button, settings.init_image ? "Link without the picture" : "Link");
