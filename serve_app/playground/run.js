// A run: one prompt with its settings, some seeds, and the state of each image. It does not touch the document.

import { ApiError, cancel, found, resume, sentence, stream } from "./api.js";
import { toDataUri } from "./picture.js";

const SEED_SPAN = 2 ** 32;
const PREVIEWS_PER_IMAGE = 8;
const LOST = "The connection was lost before this image was finished.";
const TOO_LATE = "It is too late: these sketches do not wait any more.";
const TOO_LATE_FOR_SOME = "It was too late for some of these sketches.";

/** The settings that are files. */
const PICTURES = ["init_image", "mask_image"];

const BUSY = new Set(["starting", "queued", "running"]);
export const ACTIVE = new Set([...BUSY, "paused"]);

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Return n seeds as the service counts them: the first, and one more each, modulo 2^32. */
export const seedsFrom = (first, n) => Array.from({ length: n }, (_, i) => (first + i) % SEED_SPAN);

/** Return n images with seeds of their own, as `Run.of` takes them. */
const imagesFrom = (seed, n) => seedsFrom(seed, n).map((each) => ({ seed: each, variations: [] }));

/** Return n relatives of an image: its noise moves on towards that of further seeds, { seed, strength }, which count up. */
export const relativesOf = ({ seed, variations }, further, n) =>
  seedsFrom(further.seed, n).map((each) => ({ seed, variations: [...variations, { ...further, seed: each }] }));

/** Return the images that settings ask for: relatives if they have variations. */
export function imagesOf({ seed, variations = [], num_images }) {
  const first = seed ?? randomSeed();
  if (!variations.length) return imagesFrom(first, num_images);
  return relativesOf({ seed: first, variations: variations.slice(0, -1) }, variations.at(-1), num_images);
}

/** How an event changes its image. */
const CHANGES = {
  queued: (event) => ({ state: "queued", position: event.position }),
  progress: (event) => ({ state: "running", step: event.step, steps: event.num_inference_steps }),
  preview: (event) => ({ ...CHANGES.progress(event), preview: `data:${event.media_type};base64,${event.b64_json}` }),
  paused: (event) => ({ ...CHANGES.preview(event), state: "paused", sketched: true, until: 1000 * event.expires_at }),
  resumed: (event) => ({ state: "starting", step: event.step, steps: event.num_inference_steps }),
  image: (event) => ({ state: "done", blob: toBlob(event) }),
  failed: (event) => ({ state: "failed", reason: sentence(event.error.message) }),
  cancelled: (event) => ({ state: "cancelled", expired: event.error?.type === "expired" }),
};

const fresh = (generation) => ({
  state: "starting", step: 0, steps: 0, position: null, preview: null, reason: "", stopping: false,
  kept: false, finishing: false, passedOver: false, until: null, expired: false, generation,
});

/**
 * Events: `image` (detail: the image that changed), `change` (of the run itself) and `settled` (the service is not at work on any image any more:
 * they have ended, or wait as sketches).
 *
 * An image is { seed, variations, state, step, steps, position, preview, blob, reason, stopping, sketched, kept, finishing, passedOver, until, expired };
 * `state` is starting, queued, running, paused, done, failed or cancelled, and `blob` is the picture once there is one. A sketch waits `until` a time
 * in milliseconds; a person has `kept` it to be finished, or `passedOver` it. What was `sketched` once is generated as a whole the next time.
 */
export class Run extends EventTarget {
  #liveliness = 0; // 2: the service is at work on images; 1: there are only sketches that wait; 0: all have ended
  #choices = []; // sketches in the order in which they were kept, or no longer

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

  /** Take { seed, variations } of each image; the settings are those that all of them have. */
  static of({ variations, ...settings }, images) {
    return new Run(settings, images.map((image) => ({ ...image, blob: null, sketched: false, ...fresh(null) })));
  }

  /** Bring back a run whose pictures, { seed, variations, blob } each, were kept. */
  static kept({ id, settings, model }, pictures) {
    return new Run(settings, pictures.map((picture) => ({ variations: [], sketched: true, ...fresh(null), ...picture, state: "done" })), { id, model });
  }

  /** The image whose relatives these are, { seed, variations }, and what moved them from it; null if they are none. */
  get kinship() {
    const [{ seed, variations }] = this.images;
    return variations.length ? { of: { seed, variations: variations.slice(0, -1) }, by: variations.at(-1) } : null;
  }

  /** The settings that generate it again. */
  get again() {
    const [{ seed, variations }] = this.images;
    return { ...this.settings, seed, variations };
  }

  /** The images that its relatives come from, the first first: { seed, variations } each. */
  get ancestors() {
    const [{ seed, variations }] = this.images;
    return variations.map((_, i) => ({ seed, variations: variations.slice(0, i) }));
  }

  /** Return its image of this seed and these variations, if it has one. */
  imageOf({ seed, variations }) {
    return this.images.find((image) => image.seed === seed && JSON.stringify(image.variations) === JSON.stringify(variations));
  }

  /** Whether images of the same seed and variations are the same in both. */
  isLike({ settings }) {
    const [ours, theirs] = [this.settings, settings].map((each) => JSON.stringify({ ...each, seed: null, num_images: null }));
    return ours === theirs;
  }

  /** Whether the service refused all of it. */
  get refused() {
    return this.problem !== null && this.id === null;
  }

  /** The images that are missing. */
  get unfinished() {
    return this.images.filter((image) => (image.state === "failed" || image.state === "cancelled") && !image.passedOver);
  }

  get active() {
    return this.images.some((image) => ACTIVE.has(image.state));
  }

  /** The images that wait to be chosen. */
  get sketches() {
    return this.images.filter((image) => image.state === "paused" && !image.finishing && !image.stopping);
  }

  get undoable() {
    return this.#choices.some((image) => this.sketches.includes(image));
  }

  /** Generate some of the images (again). Refusals become `problem`; only invalid input (422) is thrown. */
  async generate(images = this.images) {
    await Promise.all(requests(images).map((some) => this.#generate(some)));
  }

  /** What finds its sketches again, as text can hold it: the settings, and the generations that wait; null if none does. */
  get waiting() {
    const generations = [...new Set(this.images.map((image) => image.generation))].filter((each) => this.#waits(each));
    if (!generations.length) return null;
    const known = ({ seed, variations, kept }) => ({ seed, variations, kept });
    return { settings: this.settings, generations: generations.map(({ id, images }) => ({ id, images: images.map(known) })) };
  }

  /** Bring back a run that waited when the page was left; read what has become of it. */
  static found({ settings, generations }) {
    const run = Run.of(settings, generations.flatMap(({ images }) => images));
    const images = [...run.images];
    for (const { id, images: before } of generations) {
      const generation = { id, images: images.splice(0, before.length), stop: new AbortController() };
      run.#start(generation.images, generation);
      before.forEach(({ kept }, i) => Object.assign(generation.images[i], { kept }));
      run.#follow(generation, () => found(id, generation.stop.signal, () => run.#waits(generation)));
    }
    return run;
  }

  async #generate(images) {
    const generation = { id: null, images, stop: new AbortController() };
    this.#start(images, generation);
    await this.#follow(generation, async () => stream(await this.#body(images), generation.stop.signal, () => this.#waits(generation)));
  }

  async #follow(generation, events) {
    try {
      for await (const event of await events()) this.#take(event, generation);
      this.#leave(generation, "failed", LOST);
    } catch (error) {
      if (!generation.stop.signal.aborted) {
        this.#refuse(generation, error);
        if (error.status === 422) throw error;
      }
    } finally {
      this.#leave(generation, "cancelled", "");
    }
  }

  /** Keep a sketch, or no longer. */
  choose(image) {
    this.#choices.push(image);
    this.#change(image, { kept: !image.kept });
  }

  /** Take the last choice back. */
  undo() {
    const image = this.#choices.findLast((each) => this.sketches.includes(each));
    this.#choices.splice(this.#choices.lastIndexOf(image), 1);
    this.#change(image, { kept: !image.kept });
  }

  /** Let some sketches go on, and cancel the others. If none can, the others stay to be chosen. */
  async finish(images) {
    const others = this.sketches.filter((image) => !images.includes(image));
    if (!(await this.resume(images))) return;
    for (const image of others) this.#change(image, { passedOver: true });
    await Promise.all(others.map((image) => this.cancelImage(image)));
  }

  /** Let some sketches go on; return whether any does. What keeps one from it becomes `problem`. */
  async resume(images) {
    this.problem = null;
    for (const image of images) this.#change(image, { finishing: true });
    const generations = Map.groupBy(images, (image) => image.generation);
    const resumed = (await Promise.all([...generations].map(([generation, some]) => this.#resume(generation, some)))).flat();
    for (const image of images) if (!resumed.includes(image)) this.#change(image, { finishing: false });
    if (resumed.length < images.length) this.problem ??= notice(resumed.length ? TOO_LATE_FOR_SOME : TOO_LATE);
    this.dispatchEvent(new Event("change"));
    return resumed.length > 0;
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
    const [{ variations, sketched }] = images;
    if (sketched) delete settings.pause_after;
    const draws = variations.length ? { seed: images[0].seed, variations, num_images: images.length } : { seeds: images.map((image) => image.seed) };
    return { ...settings, ...draws, preview_every };
  }

  /** Whether there is nothing to do for a generation but to choose from its sketches. Pictures to go on from do not outlive the page. */
  #waits(generation) {
    const states = new Set(generation?.images.map(({ state }) => state));
    return states.has("paused") && ![...BUSY].some((state) => states.has(state)) && !PICTURES.some((name) => this.settings[name]);
  }

  #stop(image) {
    const { id, images } = image.generation;
    return cancel(id, images.indexOf(image)).catch(() => this.#change(image, { stopping: false }));
  }

  async #resume({ id, images }, some) {
    try {
      return (await resume(id, some.map((image) => images.indexOf(image)))).map((index) => images[index]);
    } catch (error) {
      const gone = error.status === 404 || error.status === 409;
      if (!gone) this.problem = notice(error.message);
      return [];
    }
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
    const before = this.#liveliness;
    this.#liveliness = this.images.some(({ state }) => BUSY.has(state)) ? 2 : Number(this.active);
    if (this.#liveliness < before) this.dispatchEvent(new Event("settled"));
  }
}

/** Split images into those that one request can ask for: all are sketched first or none, and the seeds of relatives' last variations count up. */
function requests(images) {
  const groups = [];
  for (const image of images) {
    const last = groups.at(-1)?.at(-1);
    if (last && isNext(image, last)) groups.at(-1).push(image);
    else groups.push([image]);
  }
  return groups;
}

/** Return a problem that trying again does not solve. */
const notice = (message) => ({ message, remedy: null, retryAt: null, images: [] });

const isNext = (image, last) =>
  image.sketched === last.sketched && (!image.variations.length || image.variations.at(-1).seed === (last.variations.at(-1).seed + 1) % SEED_SPAN);

function toBlob({ b64_json, media_type }) {
  return new Blob([Uint8Array.from(atob(b64_json), (letter) => letter.charCodeAt(0))], { type: media_type });
}
