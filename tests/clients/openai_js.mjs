// The official OpenAI SDK for JavaScript.

import OpenAI, { BadRequestError, toFile } from "openai";
import { expect, read, report, seen } from "./report.mjs";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const FEW = { num_inference_steps: 6, seed: 7 };
const picture = (name) => toFile(read(name), name, { type: "image/png" });
const pictures = (answer) => seen(...answer.data.map((item) => item.b64_json));

async function streamed(stream) {
  const kinds = {};
  for await (const event of stream) kinds[event.type] = (kinds[event.type] ?? 0) + 1;
  return Object.entries(kinds).map(([kind, number]) => `${number} ${kind}`).join(", ");
}

await report({
  "models.list": async () => {
    const { data } = await client.models.list();
    return data.map((model) => model.id).join(", ");
  },
  "images.generate, n 2": async () =>
    pictures(await client.images.generate({ prompt: "a red apple", n: 2, size: "256x256", ...FEW })),
  "images.generate, stream, partial_images 2": async () => {
    const asked = { prompt: "a red apple", size: "256x256", stream: true, partial_images: 2, ...FEW };
    return streamed(await client.images.generate(asked));
  },
  "images.edit": async () =>
    pictures(await client.images.edit({ image: await picture("photo.png"), prompt: "a green apple", ...FEW })),
  "images.edit, mask, n 2": async () => {
    const files = { image: await picture("photo.png"), mask: await picture("cut.png") };
    return pictures(await client.images.edit({ ...files, prompt: "a green apple", n: 2, ...FEW }));
  },
  "images.edit, list of one": async () => {
    const files = { image: [await picture("photo.png")] };
    return pictures(await client.images.edit({ ...files, prompt: "a green apple", seeds: [5, 9], num_inference_steps: 6 }));
  },
  "images.edit, stream, partial_images 1": async () => {
    const asked = { image: await picture("photo.png"), prompt: "a lemon", stream: true, partial_images: 1, ...FEW };
    return streamed(await client.images.edit(asked));
  },
  "images.edit, two pictures": async () => {
    const image = [await picture("photo.png"), await picture("photo.png")];
    const error = await client.images.edit({ image, prompt: "a" }).then(
      () => null,
      (raised) => raised,
    );
    expect(error instanceof BadRequestError && error.param === "image", error);
    return `BadRequestError: ${error.message}`;
  },
  "images.createVariation, n 2": async () =>
    pictures(await client.images.createVariation({ image: await picture("photo.png"), n: 2, size: "256x256" })),
});
