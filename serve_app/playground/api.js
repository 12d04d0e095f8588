// The service's HTTP contract: requests, server-sent events, errors.

import { key, withKey } from "./key.js";

/** Before each try to go on with a broken stream while nothing new comes; together less than `streams.keep_s`. */
const PAUSES_MS = [500, 1000, 2000, 4000, 8000];

/** Turn a message of the service into a sentence for people. */
export const sentence = (message) => message.charAt(0).toUpperCase() + message.slice(1) + (/[.!?]$/.test(message) ? "" : ".");

/** Why a whole request failed. `status` is 0 without an answer; `retryAfterS` is null if the service did not give it. */
export class ApiError extends Error {
  constructor(status, message, param = null, retryAfterS = null) {
    super(sentence(message));
    this.status = status;
    this.param = param;
    this.retryAfterS = retryAfterS;
  }

  /** The label of the button that may fix it. */
  get remedy() {
    return this.status === 401 ? "Enter a key" : "Try again";
  }
}

/** Return the models that requests may name, the default first: { name, request }, the JSON Schema of a body with its bounds and defaults. */
export async function servedModels() {
  return (await withKey(() => call("models"))).json();
}

const ofModel = (path, model) => (model === null ? path : `${path}?${new URLSearchParams({ model })}`);

/** Return the schedulers that a served model takes, each with the schedules that it can follow; null if it cannot say now. */
export async function schedulersTaken(model = null) {
  return call(ofModel("schedulers", model)).then((response) => response.json(), () => null);
}

/** Return the LoRAs that requests for a model may name; null: for the only one. */
export async function loraFiles(model = null) {
  return (await call(ofModel("loras", model))).json();
}

export async function serviceStatus() {
  return (await call("status")).json();
}

/**
 * Yield the events of `POST /stream`, and go on where the connection breaks. Aborting cancels it, and so does leaving the page unless it then
 * `waits`. Throws ApiError if the request is refused or the connection breaks for good.
 */
export async function* stream(body, signal, waits) {
  const id = randomId();
  const content = JSON.stringify({ ...body, id, on_disconnect: "wait" });
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: content, signal };
  yield* owned(() => call("stream", options), id, signal, waits);
}

/** Yield the events of a generation that waits, from its first; otherwise as `stream`. */
export async function* found(id, signal, waits) {
  yield* owned(() => call(`generations/${id}/events`, { signal }), id, signal, waits);
}

async function* owned(ask, id, signal, waits) {
  const giveUp = () => call(`generations/${id}`, { method: "DELETE", keepalive: true }).catch(() => {}); // it has ended, or the connection is lost
  const leave = () => waits() || giveUp();
  signal.addEventListener("abort", giveUp);
  addEventListener("pagehide", leave);
  try {
    yield* lasting(await withKey(ask), id, signal);
  } finally {
    signal.removeEventListener("abort", giveUp);
    removeEventListener("pagehide", leave);
  }
}

/** Yield the events of a response and of those that go on with it. A service without event ids, an older one, cannot go on. */
async function* lasting(response, id, signal) {
  let last = null;
  let pauses = [...PAUSES_MS];
  while (response !== null) {
    let lost = null;
    try {
      for await (const frame of frames(response.body, signal)) {
        if (frame.id !== last) [last, pauses] = [frame.id, [...PAUSES_MS]];
        const event = JSON.parse(frame.data);
        yield event;
        if (event.type === "completed" || event.type === "error") return;
      }
    } catch (error) {
      if (signal.aborted) throw error;
      lost = error;
    }
    response = last === null ? null : await resumed(id, last, pauses, signal);
    if (response === null && lost !== null) throw lost;
  }
}

/** Return the rest of a stream after an event, or null if the service cannot be reached or knows of none. */
async function resumed(id, last, pauses, signal) {
  while (pauses.length > 0) {
    await new Promise((resolve) => setTimeout(resolve, pauses.shift()));
    try {
      return await call(`generations/${id}/events`, { headers: { "Last-Event-ID": last }, signal });
    } catch (error) {
      if (signal.aborted) throw error;
      if (error.status >= 400 && error.status < 500) return null;
    }
  }
  return null;
}

/** Return a random UUID. Not crypto.randomUUID: pages without TLS have none. */
function randomId() {
  const random = (digit) => (digit ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (digit / 4)))).toString(16);
  return "10000000-1000-4000-8000-100000000000".replace(/[018]/g, random);
}

/** Stop one image, or all of a generation if `index` is null. It is no error if they have ended meanwhile. */
export async function cancel(id, index = null) {
  const path = `generations/${id}` + (index === null ? "" : `/images/${index}`);
  try {
    await withKey(() => call(path, { method: "DELETE" }));
  } catch (error) {
    if (error.status !== 404) throw error;
  }
}

/** Let images that are paused go on; return the indexes of those that do. */
export async function resume(id, images) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ images }) };
  return (await (await withKey(() => call(`generations/${id}/resume`, options))).json()).resumed;
}

async function call(path, options = {}) {
  const headers = key() === null ? options.headers : { ...options.headers, Authorization: `Bearer ${key()}` };
  let response;
  try {
    // Relative to the page, so that a gateway may put the service under a path of its own.
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw options.signal?.aborted ? error : new ApiError(0, "The service cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const problem = await response.json().then((body) => body.error, () => null);
  const wait = Number.parseInt(response.headers.get("Retry-After"), 10);
  const message = response.status === 401 ? "This service needs an API key." : (problem?.message ?? `The service answered ${response.status}.`);
  return new ApiError(response.status, message, problem?.param, Number.isNaN(wait) ? null : wait);
}

/** Yield the data of each server-sent event and the id of the last one that had one. A frame may hold megabytes, so each piece is scanned only once. */
async function* frames(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  let data = null;
  let id = null;
  try {
    for (;;) {
      const { value, done } = await read(reader, signal);
      if (done) return;
      const lines = value.split("\n");
      while (lines.length > 1) {
        const line = pieces.join("") + lines.shift();
        pieces = [];
        if (line.startsWith("data: ")) data = line.slice(6);
        if (line.startsWith("id: ")) id = line.slice(4);
        if (line !== "" || data === null) continue;
        yield { data, id };
        data = null;
      }
      pieces.push(lines[0]);
    }
  } finally {
    reader.cancel().catch(() => {}); // already broken
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    throw signal.aborted ? error : new ApiError(0, "The connection to the service was lost.");
  }
}
