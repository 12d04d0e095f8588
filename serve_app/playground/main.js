// The page: connects the form, the runs, the viewer and the history.

import { Ancestry } from "./ancestry.js";
import { schedulersTaken, servedModels } from "./api.js";
import { announce, byId, count } from "./dom.js";
import * as past from "./history.js";
import { forgetKey, showWhetherKept } from "./key.js";
import { copyLink, fromUrl, toUrl, wantsPicture } from "./link.js";
import { Loras } from "./loras.js";
import { Run, imagesOf, randomSeed, relativesOf, seedsFrom } from "./run.js";
import { Settings } from "./settings.js";
import { Start } from "./start.js";
import { watchService } from "./status.js";
import { RunView, fileName, nameOf } from "./tiles.js";
import { view } from "./viewer.js";

const MOST_RUNS = 12;
/** Where this tab notes what waits while the page is loaded again. */
const WAITING = "parallel-sdxl-waiting";
/** The strengths that are usual for a whole picture and for a part of one. */
const STRENGTH = 0.6;
const STRENGTH_OF_PART = 1;
/** How far relatives are from their picture at first, how many there are, and seeds for them that people can read. */
const NEARNESS = 0.2;
const RELATIVES = 4;
const READABLE_SEEDS = 10_000;

const loras = new Loras(byId("loras-field"));
const settings = new Settings(byId("settings"), (model, properties) => {
  loras.follow(model, properties.loras);
  schedulersTaken(model).then((schedulers) => settings.takeSchedulers(model, schedulers));
});
const start = new Start(byId("start"), () => settings.largestSide);
const ancestry = new Ancestry(byId("ancestry"));
const shown = new Map(); // the runs on the page, newest last, and their views
let nearness = NEARNESS;
const askService = watchService(() => [...shown.keys()].some((run) => run.active));

const actions = { open: (run, image) => view(run, image, { edit, vary }), generate: follow, edit, use, more, vary, reach, remove };

async function connect() {
  byId("unavailable").hidden = true;
  try {
    settings.describe(await servedModels(), fromUrl());
    loras.fill(fromUrl().loras);
    ancestry.fill(fromUrl());
    start.expect(wantsPicture(fromUrl()) && !start.picture);
  } catch (error) {
    byId("unavailable").querySelector("p").textContent = error.message;
    byId("reconnect").textContent = error.remedy;
    byId("unavailable").hidden = false;
    return;
  }
  byId("generate").disabled = false;
  askService();
}

function readFields() {
  const [values, adapters] = [settings.read(), loras.read()];
  return values && adapters && { ...values, ...adapters, ...ancestry.read() };
}

/** Return all that the form says, or null if something is wrong. */
async function read() {
  const values = readFields();
  return values && { ...values, ...(await start.read()) };
}

async function fill(values) {
  settings.fill(values);
  loras.fill(values.loras);
  ancestry.fill(values);
  await start.fill(values);
}

async function generate() {
  const values = await read();
  if (!values) return;
  history.replaceState(null, "", toUrl(values));
  const run = Run.of(values, imagesOf(values));
  put(run);
  follow(run, run.images);
}

async function follow(run, images) {
  announce(`Generating ${count(images.length, "image")}`);
  const generating = run.generate(images);
  askService();
  try {
    await generating;
  } catch (error) {
    if (error.status !== 422) throw error;
    if (rejected(error) && !run.id) drop(run); // nothing of it was generated
  }
}

/** Show the service's message beside the field it is about; return whether the form has that field. */
function rejected({ param, message }) {
  if (param?.split(".")[0] !== "loras") return settings.reject(param, message);
  loras.reject(message);
  return true;
}

/** Fill the form with a run's settings. */
async function use(run) {
  await fill(run.again);
  byId("prompt").focus();
}

/** Go on from an image with its run's settings: what is left of its noise is another's, and so are its variations and its sketch. */
async function edit(run, image) {
  const picture = new File([image.blob], fileName(image), { type: image.blob.type });
  const pause_after = run.settings.pause_after && "";
  await fill({ ...run.settings, seed: null, strength: null, pause_after, init_image: picture, mask_image: null });
  byId("start").scrollIntoView({ block: "nearest" });
  byId("paint").focus();
  announce(`${nameOf(image)}: to go on from`);
}

/** Generate the seeds after this one that the run does not have, with the run's settings and as many images. */
async function more(run, image) {
  const taken = new Set(run.images.map(({ seed }) => seed));
  const first = seedsFrom(image.seed, taken.size + 1).find((seed) => !taken.has(seed));
  await fill({ ...run.settings, seed: first });
  generate();
}

/** Generate relatives of an image; later ones are as near as the last that were asked for. */
function vary(run, image, by = { seed: randomSeed() % READABLE_SEEDS, strength: nearness }) {
  nearness = by.strength;
  const num_images = Math.min(RELATIVES, byId("num_images").max);
  const relatives = Run.of({ ...run.settings, num_images }, relativesOf(image, by, num_images));
  put(relatives);
  follow(relatives, relatives.images);
}

/** Show an image that relatives come from: the newest run that has it; return whether one is on the page. */
function reach(relatives, image) {
  const run = [...shown.keys()].findLast((each) => each.imageOf(image) && each.isLike(relatives));
  if (run) shown.get(run).reach(run.imageOf(image));
  else announce(`${nameOf(image)} is not on this page any more`);
  return run !== undefined;
}

function put(run) {
  const runView = new RunView(run, actions);
  run.addEventListener("settled", () => settled(run));
  shown.set(run, runView);
  byId("runs").prepend(runView.element);
  byId("empty").hidden = true;
  const { top } = runView.element.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) runView.element.scrollIntoView();
}

/** Remove the oldest runs from the page; refused runs do not displace those with pictures. */
function tidy() {
  const ended = [...shown.keys()].filter((run) => !run.active);
  for (const runs of Map.groupBy(ended, (run) => run.refused).values()) runs.slice(0, -MOST_RUNS).forEach(drop);
}

function remove(run) {
  drop(run);
  byId("runs").focus(); // the button that had the focus is gone
  announce("Removed");
}

function drop(run) {
  shown.get(run).discard();
  shown.delete(run);
  byId("empty").hidden = shown.size > 0;
}

/** Show the sketches that waited when this page was left, such as to be loaded again. */
function findWaiting() {
  const waiting = JSON.parse(sessionStorage.getItem(WAITING) ?? "[]");
  waiting.map(Run.found).forEach(put);
}

async function settled(run) {
  const ended = Map.groupBy(run.images, ({ state, expired, passedOver }) => (state === "paused" ? "sketched" : expired ? "expired" : passedOver ? "not kept" : state));
  const parts = [...ended].map(([word, images]) => `${count(images.length, "image")} ${word}`);
  announce(run.problem?.message ?? parts.join(", "));
  askService();
  tidy();
  await past.keep(run).then(showHistory, () => {}); // a browser that keeps nothing
}

async function showHistory() {
  const kept = await past.entries();
  byId("history").hidden = !kept.length;
  for (const img of byId("history").querySelectorAll("img")) URL.revokeObjectURL(img.src);
  byId("history").querySelector("ul").replaceChildren(...kept.map(historyItem));
}

function historyItem(entry) {
  const label = `${entry.settings.prompt}, ${count(entry.images, "image")}, seed ${entry.seed}`;
  const button = Object.assign(document.createElement("button"), { type: "button", title: label, ariaLabel: label });
  const img = Object.assign(document.createElement("img"), { src: URL.createObjectURL(entry.thumbnail), alt: "" });
  button.append(img);
  button.addEventListener("click", () => restore(entry));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

/** Show a kept run again, and fill the form with its settings. */
async function restore(entry) {
  let run = [...shown.keys()].find(({ id }) => id === entry.id);
  if (!run) {
    run = Run.kept(entry, await past.picturesOf(entry.id));
    if (!run.images.length) return showHistory();
    put(run);
    tidy();
  }
  await fill(run.again);
  shown.get(run).element.scrollIntoView({ block: "nearest" });
  announce(`${count(run.images.length, "image")} back`);
}

byId("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  byId("generate").click();
});
byId("dice").addEventListener("click", () => {
  const seed = randomSeed();
  settings.set("seed", seed);
  announce(`Seed ${seed}`);
});
byId("reset").addEventListener("click", () => {
  settings.fill({ prompt: byId("prompt").value, model: byId("model").value });
  loras.fill();
  ancestry.fill({});
});
byId("copy-link").addEventListener("click", ({ currentTarget }) => {
  const values = readFields();
  if (values) copyLink({ ...values, init_image: start.picture }, currentTarget);
});
loras.addEventListener("words", ({ detail }) => {
  const { value } = byId("prompt");
  if (value.includes(detail)) return announce(`${detail}: is in the prompt`);
  settings.set("prompt", value.trim() ? `${value.trimEnd()}, ${detail}` : detail);
  announce(`${detail}: put into the prompt`);
});
start.addEventListener("change", () => {
  settings.clearError("init_image");
  settings.usually("strength", start.masked ? STRENGTH_OF_PART : STRENGTH);
  settings.offerSizeOf(start.picture);
});
start.addEventListener("chosen", () => settings.takeSizeOf(start.picture));
start.addEventListener("refused", ({ detail }) => settings.reject("init_image", detail));
for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    settings.set("prompt", chip.textContent);
    byId("prompt").focus();
  });
}
byId("clear-history").addEventListener("click", () => {
  if (confirm("Delete all pictures that this browser keeps of this page?")) past.clear().then(showHistory);
});
// Another tab may have added a run.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) showHistory().catch(() => {});
});
byId("forget-key").addEventListener("click", () => {
  forgetKey();
  askService();
});
byId("reconnect").addEventListener("click", connect);
addEventListener("hashchange", () => {
  settings.fill(fromUrl());
  loras.fill(fromUrl().loras);
  ancestry.fill(fromUrl());
  if (!wantsPicture(fromUrl())) start.fill({});
  else start.expect(!start.picture);
});
if (/Mac|iP/.test(navigator.platform)) byId("shortcut").textContent = "⌘ ⏎";
byId("more").open = matchMedia("(min-width: 60rem)").matches;

addEventListener("pagehide", () => {
  const waiting = [...shown.keys()].map((run) => run.waiting).filter(Boolean);
  if (waiting.length) sessionStorage.setItem(WAITING, JSON.stringify(waiting));
});
addEventListener("pageshow", () => sessionStorage.removeItem(WAITING)); // found, or this page itself is back

showWhetherKept();
connect();
findWaiting();
showHistory().catch(() => {});
