// Finished runs, kept only in this browser: the latest ones, up to a limit on their pictures' size.

const DATABASE = "parallel-sdxl";
const MOST_RUNS = 24;
const MOST_BYTES = 96 * 2 ** 20;
const THUMBNAIL = 128;

/** Keep a run's settings and pictures, in place of what was kept of it before. */
export async function keep(run) {
  const pictures = run.images.filter((image) => image.blob).map(({ seed, variations, blob }) => ({ seed, variations, blob }));
  if (!pictures.length) return;
  const entry = {
    id: run.id,
    kept: Date.now(),
    settings: run.settings,
    model: run.model,
    images: pictures.length,
    seed: pictures[0].seed,
    bytes: filesOf(run.settings, pictures).reduce((sum, { size }) => sum + size, 0),
    thumbnail: await thumbnail(pictures),
  };
  const database = await open();
  const { runs, pictures: store, done } = begin(database, "readwrite");
  runs.put(entry);
  store.put(pictures, run.id);
  for (const id of surplus(await result(runs.getAll()))) {
    runs.delete(id);
    store.delete(id);
  }
  await done;
}

/** Return what is kept, newest first: { id, settings, model, images, seed, thumbnail }. */
export async function entries() {
  const { runs } = begin(await open(), "readonly");
  return newestFirst(await result(runs.getAll()));
}

/** Return the pictures of a kept run, { seed, variations, blob } each (older ones without variations); none if it was removed meanwhile. */
export async function picturesOf(id) {
  const { pictures } = begin(await open(), "readonly");
  return (await result(pictures.get(id))) ?? [];
}

export async function clear() {
  const { runs, pictures, done } = begin(await open(), "readwrite");
  runs.clear();
  pictures.clear();
  await done;
}

/** Return all files of a run: its pictures, and those it goes on from. */
const filesOf = (settings, pictures) => [...pictures.map(({ blob }) => blob), ...Object.values(settings).filter((value) => value instanceof Blob)];

const newestFirst = (kept) => kept.sort((a, b) => b.kept - a.kept);

/** Return the ids of the oldest runs beyond the limits. */
function surplus(kept) {
  let bytes = 0;
  return newestFirst(kept).filter((entry, i) => (bytes += entry.bytes) > MOST_BYTES || i >= MOST_RUNS).map(({ id }) => id);
}

function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("runs", { keyPath: "id" });
    request.result.createObjectStore("pictures");
  };
  return result(request);
}

function begin(database, mode) {
  const transaction = database.transaction(["runs", "pictures"], mode);
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = transaction.onabort = () => database.close();
    transaction.addEventListener("complete", resolve);
    transaction.addEventListener("abort", () => reject(transaction.error));
  });
  done.catch(() => {}); // readers do not await it
  return { runs: transaction.objectStore("runs"), pictures: transaction.objectStore("pictures"), done };
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Draw the first four pictures, or the first, on one small square. */
async function thumbnail(pictures) {
  const shown = pictures.slice(0, pictures.length >= 4 ? 4 : 1);
  const side = shown.length === 4 ? 2 : 1;
  const cell = THUMBNAIL / side;
  const canvas = Object.assign(document.createElement("canvas"), { width: THUMBNAIL, height: THUMBNAIL });
  const context = canvas.getContext("2d");
  for (const [i, { blob }] of shown.entries()) {
    const bitmap = await createImageBitmap(blob);
    const crop = Math.min(bitmap.width, bitmap.height);
    const [left, top] = [(bitmap.width - crop) / 2, (bitmap.height - crop) / 2];
    context.drawImage(bitmap, left, top, crop, crop, (i % side) * cell, Math.floor(i / side) * cell, cell, cell);
    bitmap.close();
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.8));
}
