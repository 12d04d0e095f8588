// What the clients' programs print: a line of JSON for each call.

import { readFileSync } from "node:fs";

const folder = new URL("../../out/clients/", import.meta.url);

/** Return the content of a file: photo.png, mask.png (white in the right half) or cut.png (transparent there). */
export const read = (name) => readFileSync(new URL(name, folder));

/** Make calls in order and print how each went. */
export async function report(calls) {
  for (const [call, make] of Object.entries(calls)) {
    let told;
    try {
      told = { call, ok: true, result: await make() };
    } catch (error) {
      told = { call, ok: false, result: `${error.name}: ${error.message}` };
    }
    console.log(JSON.stringify(told));
  }
}

/** Return in words what PNGs, as base64, show by their headers. */
export function seen(...pictures) {
  const sizes = pictures.map((picture) => {
    const file = Buffer.from(picture, "base64");
    if (file.toString("latin1", 1, 4) !== "PNG") throw new Error("no PNG");
    return `${file.readUInt32BE(16)}x${file.readUInt32BE(20)}`;
  });
  return `${pictures.length} of ${[...new Set(sizes)].join(" and ")}`;
}

export function expect(fact, what) {
  if (!fact) throw new Error(JSON.stringify(what));
}
