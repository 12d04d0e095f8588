// One picture at full size, in a dialog; the arrow keys go through the pictures of its run.

import { byId, copy } from "./dom.js";
import { fileName, nameOf, urlOf } from "./tiles.js";

const dialog = byId("viewer");
const part = (action) => dialog.querySelector(`[data-action=${action}]`);

let run = null;
let image = null;
let actions = null;

/** `actions` are { edit, vary }; they take the run and the image. */
export function view(aRun, anImage, itsActions) {
  [run, image, actions] = [aRun, anImage, itsActions];
  show();
  dialog.showModal();
}

const pictures = () => run.images.filter((each) => each.state === "done");

function show() {
  const all = pictures();
  const place = all.indexOf(image);
  const name = nameOf(image);
  const img = dialog.querySelector("img");
  img.style.setProperty("--ratio", run.settings.width / run.settings.height);
  Object.assign(img, { src: urlOf(image), alt: `${run.settings.prompt}, ${name.toLowerCase()}` });
  dialog.querySelector(".viewer-seed").textContent = name;
  dialog.querySelector(".viewer-place").textContent = all.length > 1 ? `${place + 1} of ${all.length}` : "";
  part("previous").disabled = place <= 0;
  part("next").disabled = place === all.length - 1;
  Object.assign(part("download"), { href: urlOf(image), download: fileName(image), ariaLabel: `Download, ${name}` });
  part("edit").ariaLabel = `Edit this, ${name}`;
  part("vary").ariaLabel = `More like this, ${name}`;
  part("copy").ariaLabel = `Copy the seed, ${image.seed}`;
}

function go(by) {
  const next = pictures()[pictures().indexOf(image) + by];
  if (!next) return;
  image = next;
  show();
}

dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") go(-1);
  if (event.key === "ArrowRight") go(1);
});
part("previous").addEventListener("click", () => go(-1));
part("next").addEventListener("click", () => go(1));
part("copy").addEventListener("click", (event) => copy(String(image.seed), event.currentTarget, `Seed ${image.seed}`));
for (const action of ["edit", "vary"]) {
  part(action).addEventListener("click", () => {
    dialog.close();
    actions[action](run, image);
  });
}
part("close").addEventListener("click", () => dialog.close());
// The backdrop is the dialog itself; what is on it is not.
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
