// A run: one prompt with its settings, some seeds, and the state of each image. It does not touch the document.

import { ApiError, cancel, sentence, stream } from "./api.js";
import { toDataUri } from "./picture.js";

const SEED_SPAN = 2 ** 32;
const PREVIEWS_PER_IMAGE = 8;
const LOST = "The connection was lost before this image was finished.";

/** The settings that are files. */
const PICTURES = ["init_image", "mask_image"];

export const ACTIVE = new Set(["starting", "queued", "running"]);

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Return n seeds as the service counts them: the first, and one more each, modulo 2^32. */
export const seedsFrom = (first, n) => Array.from({ length: n }, (_, i) => (first + i) % SEED_SPAN);

/** Return n images with seeds of their own, as `Run.of` takes them. */
export const imagesFrom = (seed, n) => seedsFrom(seed, n).map((each) => ({ seed: each, variations: [] }));

/** Return n relatives of an image: its noise moves on towards that of further seeds, { seed, strength }, which count up. */
export const relativesOf = ({ seed, variations }, further, n) =>
  seedsFrom(further.seed, n).map((each) => ({ seed, variations: [...variations, { ...further, seed: each }] }));

/** How an event changes its image. */
const CHANGES = {
  queued: (event) => ({ state: "queued", position: event.position }),
  progress: (event) => ({ state: "running", step: event.step, steps: event.num_inference_steps }),
  preview: (event) => ({ ...CHANGES.progress(event), preview: `data:${event.media_type};base64,${event.b64_json}` }),
  image: (event) => ({ state: "done", blob: toBlob(event) }),
  failed: (event) => ({ state: "failed", reason: sentence(event.error.message) }),
  cancelled: () => ({ state: "cancelled" }),
};

const fresh = (generation) => ({ state: "starting", step: 0, steps: 0, position: null, preview: null, reason: "", stopping: false, generation });

/**
 * Events: `image` (detail: the image that changed), `change` (of the run itself) and `settled` (no image is on its way any more).
 *
 * An image is { seed, variations, state, step, steps, position, preview, blob, reason, stopping }; `state` is starting, queued, running, done, failed
 * or cancelled, and `blob` is the picture once there is one.
 */
export class Run extends EventTarget {
  /** `id` and `model` are null until the service has named them. */
  constructor(settings, images, { id = null, model = null } = {}) {
    super();
    this.settings = Object.freeze({ ...settings });
    this.images = images;
    this.id = id;
    this.model = model;
    this.warnings = [];
    this.problem = null; // of the last request, if it was refused: { message, remedy, retryAt, images }
  }

  /** Take { seed, variations } of each image. */
  static of(settings, images) {
    return new Run(settings, images.map((image) => ({ ...image, blob: null, ...fresh(null) })));
  }

  /** Bring back a run whose pictures, { seed, variations, blob } each, were kept. */
  static kept({ id, settings, model }, pictures) {
    return new Run(settings, pictures.map((picture) => ({ variations: [], ...fresh(null), ...picture, state: "done" })), { id, model });
  }

  /** The image whose relatives these are, { seed, variations }, and what moved them from it; null if they are none. */
  get kinship() {
    const [{ seed, variations }] = this.images;
    return variations.length ? { of: { seed, variations: variations.slice(0, -1) }, by: variations.at(-1) } : null;
  }

  /** Whether the service refused all of it. */
  get refused() {
    return this.problem !== null && this.id === null;
  }

  get unfinished() {
    return this.images.filter((image) => image.state === "failed" || image.state === "cancelled");
  }

  get active() {
    return this.images.some((image) => ACTIVE.has(image.state));
  }

  /** Generate some of the images (again). Refusals become `problem`; only invalid input (422) is thrown. */
  async generate(images = this.images) {
    await Promise.all(requests(images).map((some) => this.#generate(some)));
  }

  async #generate(images) {
    const generation = { id: null, images, stop: new AbortController() };
    this.#start(images, generation);
    try {
      for await (const event of stream(await this.#body(images), generation.stop.signal)) this.#take(event, generation);
      this.#leave(generation, "failed", LOST);
    } catch (error) {
      if (!generation.stop.signal.aborted) {
        this.#refuse(generation, error);
        if (error.status === 422) throw error;
      }
    } finally {
      this.#leave(generation, "cancelled", "");
      if (!this.active) this.dispatchEvent(new Event("settled"));
    }
  }

  /** Stop one image; the stream says when it has stopped. */
  async cancelImage(image) {
    this.#change(image, { stopping: true });
    // Without an id yet: #take sees to it once there is one.
    if (image.generation.id !== null) await this.#stop(image);
  }

  /** Stop all images. Closing the connection also does it, if the request to cancel fails. */
  async cancelAll() {
    const generations = new Set(this.images.filter((image) => ACTIVE.has(image.state)).map((image) => image.generation));
    await Promise.all([...generations].map(async (generation) => {
      if (generation.id === null) return generation.stop.abort();
      await cancel(generation.id).catch(() => generation.stop.abort());
    }));
  }

  async #body(images) {
    const { seed, num_images, ...settings } = this.settings;
    const steps = settings.num_inference_steps * (settings.strength ?? 1);
    const preview_every = Math.min(100, Math.max(1, Math.round(steps / PREVIEWS_PER_IMAGE)));
    for (const name of PICTURES.filter((name) => settings[name])) settings[name] = await toDataUri(settings[name]);
    const [{ variations }] = images;
    const draws = variations.length ? { seed: images[0].seed, variations, num_images: images.length } : { seeds: images.map((image) => image.seed) };
    return { ...settings, ...draws, preview_every };
  }

  #stop(image) {
    const { id, images } = image.generation;
    return cancel(id, images.indexOf(image)).catch(() => this.#change(image, { stopping: false }));
  }

  #start(images, generation) {
    this.problem = null;
    for (const image of images) this.#change(image, fresh(generation));
    this.dispatchEvent(new Event("change"));
  }

  #take(event, generation) {
    if (event.type === "start") {
      generation.id = event.id;
      this.id ??= event.id;
      this.model = event.parameters.model.name;
      for (const image of generation.images) if (image.stopping) this.#stop(image);
    }
    if (event.warnings?.length) this.warnings = [...new Set([...this.warnings, ...event.warnings])];
    if (event.type === "error") this.#leave(generation, "failed", sentence(event.error.message));
    if (event.type === "queued") this.#moveOn(generation, event.position);
    if (event.type in CHANGES) this.#change(generation.images[event.index], CHANGES[event.type](event));
    else this.dispatchEvent(new Event("change"));
  }

  /** Only one image has a position in the queue: the image that had it before has reached a replica, though no event says so yet. */
  #moveOn(generation, position) {
    const before = generation.images.find((image) => image.state === "queued" && image.position === position);
    if (before) this.#change(before, { state: "starting" });
  }

  #refuse(generation, error) {
    if (!(error instanceof ApiError)) throw error;
    if (generation.id !== null) return this.#leave(generation, "failed", LOST);
    const { message, remedy, retryAfterS } = error;
    this.problem = { message, remedy, retryAt: retryAfterS === null ? null : Date.now() + 1000 * retryAfterS, images: generation.images };
    for (const image of generation.images) if (image.blob) this.#change(image, { state: "done" });
    this.#leave(generation, "failed", "Not generated.");
  }

  /** End the images of a generation that have not ended yet. */
  #leave(generation, state, reason) {
    for (const image of generation.images) if (ACTIVE.has(image.state)) this.#change(image, { state, reason });
    this.dispatchEvent(new Event("change"));
  }

  #change(image, changes) {
    Object.assign(image, changes);
    // Keep the old picture if generating it again was cancelled.
    if (image.state === "cancelled" && image.blob) image.state = "done";
    this.dispatchEvent(new CustomEvent("image", { detail: image }));
  }
}

/** Split images into those that one request can ask for: the seeds of relatives' last variations count up in it. */
function requests(images) {
  const groups = [];
  for (const image of images) {
    const last = groups.at(-1)?.at(-1);
    if (last && isNext(image, last)) groups.at(-1).push(image);
    else groups.push([image]);
  }
  return groups;
}

const isNext = (image, last) =>
  !image.variations.length || image.variations.at(-1).seed === (last.variations.at(-1).seed + 1) % SEED_SPAN;

function toBlob({ b64_json, media_type }) {
  return new Blob([Uint8Array.from(atob(b64_json), (letter) => letter.charCodeAt(0))], { type: media_type });
}
