// The strip that shows what the replicas are doing. It polls slowly, and not at all while the page is hidden.

import { serviceStatus } from "./api.js";
import { byId } from "./dom.js";

const BUSY_MS = 1500;
const CALM_MS = 5000;

const strip = byId("service");

/** Keep the strip up to date; `busy` says whether this page has images on their way. Returns a function that asks at once. */
export function watchService(busy) {
  let timer = null;

  async function ask() {
    clearTimeout(timer);
    if (document.hidden) return; // visibilitychange asks again
    await serviceStatus().then(show, (error) => showState(error.status === 401 ? "locked" : "lost"));
    clearTimeout(timer);
    timer = setTimeout(ask, busy() || strip.dataset.state === "busy" ? BUSY_MS : CALM_MS);
  }

  document.addEventListener("visibilitychange", ask);
  ask();
  return ask;
}

function show({ replicas, images_in_flight, images_waiting, images_per_second }) {
  showState(replicas.ready ? (images_in_flight ? "busy" : "ready") : replicas.target ? "starting" : "asleep");
  put("replicas", `${replicas.ready}/${replicas.target}`);
  put("in_flight", images_in_flight);
  put("waiting", images_waiting);
  put("rate", images_per_second.toLocaleString("en", { maximumFractionDigits: 2 }));
}

const NAMES = { ready: "Ready", busy: "Generating", starting: "Starting", asleep: "Asleep", locked: "Needs a key", lost: "No answer" };

function showState(state) {
  strip.dataset.state = state;
  put("state", NAMES[state]);
  if (state in { locked: 0, lost: 0 }) for (const name of ["replicas", "in_flight", "waiting", "rate"]) put(name, "–");
}

function put(name, value) {
  strip.querySelector(`[data-value=${name}]`).textContent = value;
}
