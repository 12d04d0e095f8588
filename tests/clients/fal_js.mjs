// fal's client for JavaScript, sent to this service by its own setting.

import { createFalClient } from "@fal-ai/client";
import { expect, read, report, seen } from "./report.mjs";

const service = process.argv[2];
const fal = createFalClient({
  credentials: "none",
  requestMiddleware: async (request) => ({ ...request, url: request.url.replace("https://fal.run", service) }),
});
const uri = (name) => `data:image/png;base64,${read(name).toString("base64")}`;
const FEW = { num_inference_steps: 6, seed: 7, format: "png", sync_mode: true };

async function ran(path, input) {
  const { data } = await fal.run(`fal-ai/fast-sdxl${path}`, { input: { ...FEW, ...input } });
  return seen(...data.images.map((image) => image.url.split(",")[1]));
}

await report({
  "run fast-sdxl, num_images 2": () => ran("", { prompt: "a red apple", num_images: 2 }),
  "run fast-sdxl/image-to-image": () =>
    ran("/image-to-image", { prompt: "a green apple", image_url: uri("photo.png"), strength: 0.6 }),
  "run fast-sdxl/inpainting": () =>
    ran("/inpainting", { prompt: "a green apple", image_url: uri("photo.png"), mask_url: uri("mask.png") }),
  "stream fast-sdxl/image-to-image": async () => {
    const input = { prompt: "a green apple", image_url: uri("photo.png"), strength: 0.9, ...FEW };
    const stream = await fal.stream("fal-ai/fast-sdxl/image-to-image", { input });
    let frames = 0;
    for await (const _ of stream) frames += 1;
    const { images } = await stream.done();
    return `${frames} frames, at last ${seen(images[0].url.split(",")[1])}`;
  },
  "run fast-sdxl/image-to-image, a URL": async () => {
    const input = { prompt: "a", image_url: "http://169.254.169.254/latest/meta-data" };
    const error = await fal.run("fal-ai/fast-sdxl/image-to-image", { input }).then(
      () => null,
      (raised) => raised,
    );
    expect(error?.status === 422 && error.body.detail[0].loc.includes("image_url"), error?.body);
    return `${error.name} ${error.status}: ${error.body.detail[0].msg}`;
  },
});
