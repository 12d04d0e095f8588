// The service's HTTP contract: requests, server-sent events, errors.

import { key, withKey } from "./key.js";

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

/** Return the properties of the request body with this service's bounds and defaults, as JSON Schema. */
export async function requestProperties() {
  const response = await withKey(() => call("openapi.json"));
  return (await response.json()).components.schemas.GenerateRequest.properties;
}

export async function serviceStatus() {
  return (await call("status")).json();
}

/** Yield the events of `POST /stream`. Throws ApiError if the request is refused or the connection breaks. */
export async function* stream(body, signal) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const response = await withKey(() => call("stream", options));
  for await (const data of frames(response.body, signal)) yield JSON.parse(data);
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

/** Yield the data of each server-sent event. A frame may hold megabytes, so each piece is scanned only once. */
async function* frames(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  try {
    for (;;) {
      const { value, done } = await read(reader, signal);
      if (done) return;
      const lines = value.split("\n");
      while (lines.length > 1) {
        const line = pieces.join("") + lines.shift();
        pieces = [];
        if (line.startsWith("data: ")) yield line.slice(6);
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
