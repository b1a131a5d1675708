// The Vercel AI SDK's generateImage, with @ai-sdk/openai and @ai-sdk/openai-compatible.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import {
  EDIT_PROMPT,
  KEY,
  PROMPT,
  SMALL,
  URL_,
  WRONG_KEY,
  check,
  difference,
  expect,
  expectEdit,
  expectMaskedEdit,
  maskPicture,
  opened,
  rejects,
  run,
  sourcePicture,
} from "./picture-checks.mjs";

const { APICallError } = ai;
const generateImage = ai.generateImage ?? ai.experimental_generateImage;
const openai = createOpenAI({ baseURL: `${URL_}/v1`, apiKey: KEY });
const compatible = createOpenAICompatible({ name: "hub", baseURL: `${URL_}/v1`, apiKey: KEY });
const bytes = await sourcePicture();

/** Generates without retries; fails where not `n` pictures come. */
async function make(model, options = {}, looks = {}) {
  const result = await generateImage({ model, prompt: PROMPT, size: SMALL, maxRetries: 0, ...options });
  const n = options.n ?? 1;
  expect(result.images.length === n, `${result.images.length} pictures, not ${n}`);
  const pictures = await Promise.all(result.images.map((image) => opened(image.uint8Array, looks)));
  for (const image of result.images)
    expect(image.mediaType === `image/${looks.kind ?? "png"}`, `media type ${image.mediaType}`);
  return { result, pictures };
}

for (const id of ["dall-e-2", "dall-e-3", "gpt-image-1", "builtin"]) {
  check(`openai: generate, ${id}`, async () => {
    const size = id === "dall-e-3" || id === "gpt-image-1" ? "1024x1024" : SMALL;
    const { result } = await make(openai.image(id), { size }, { size });
    if (id === "gpt-image-1") expect(result.usage.totalTokens > 0, result.usage);
  });
}

check("openai: options of dall-e-3", async () => {
  const providerOptions = { openai: { quality: "hd", style: "natural", user: "someone" } };
  await make(openai.image("dall-e-3"), { size: "1792x1024", providerOptions }, { size: "1792x1024" });
});

check("openai: options of gpt-image-1, webp", async () => {
  const providerOptions = {
    openai: { quality: "low", outputFormat: "webp", outputCompression: 60, background: "opaque", moderation: "low" },
  };
  const { result } = await make(openai.image("gpt-image-1"), { providerOptions }, { kind: "webp" });
  const [told] = result.providerMetadata.openai.images;
  expect(
    told.size === SMALL && told.quality === "low" && told.background === "opaque" && told.outputFormat === "webp",
    told,
  );
});

check("openai: n=2 in one call, dall-e-2", async () => {
  const { pictures } = await make(openai.image("dall-e-2"), { n: 2 });
  expect(difference(...pictures) > 0.5, "the two pictures are the same");
});

check("openai: n=2 in parallel calls of one, dall-e-3", async () => {
  const { pictures, result } = await make(openai.image("dall-e-3"), { n: 2 });
  expect(result.responses.length === 2, `${result.responses.length} calls`);
  expect(difference(...pictures) > 0.5, "the two pictures are the same");
});

check("openai: n=3 in parallel calls of one, the hub's own model", async () => {
  const { pictures } = await make(openai.image("builtin"), { n: 3 });
  expect(
    difference(pictures[0], pictures[1]) > 0.5 && difference(pictures[1], pictures[2]) > 0.5,
    "two pictures are the same",
  );
});

check("openai: edit, one image", async () => {
  const { pictures, result } = await make(openai.image("gpt-image-1"), {
    prompt: { text: EDIT_PROMPT, images: [bytes] },
  });
  await expectEdit(pictures[0], bytes);
  expect(result.usage.totalTokens > 0, result.usage);
});

check("openai: edit, two images", async () => {
  const images = [bytes, await sourcePicture({ colour: "red", kind: "jpeg" })];
  const providerOptions = { openai: { inputFidelity: "high", quality: "low" } };
  const { pictures } = await make(openai.image("gpt-image-1"), {
    prompt: { text: EDIT_PROMPT, images },
    providerOptions,
  });
  await expectEdit(pictures[0], bytes);
});

check("openai: edit with a mask, the rest stays", async () => {
  const prompt = { text: EDIT_PROMPT, images: [bytes], mask: await maskPicture() };
  const { pictures } = await make(openai.image("gpt-image-1"), { prompt });
  await expectMaskedEdit(pictures[0], bytes);
});

check("openai: errors carry the hub's words", async () => {
  let error = await rejects(make(openai.image("no-such-model")), APICallError);
  expect(error.statusCode === 404 && error.message.includes("no-such-model"), `${error.statusCode} ${error.message}`);
  expect(error.isRetryable === false, "an unknown model would be asked for again");
  error = await rejects(make(openai.image("dall-e-2"), { n: 11, maxImagesPerCall: 11 }), APICallError);
  expect(
    error.statusCode === 400 && error.data.error.param === "n",
    `${error.statusCode} ${JSON.stringify(error.data)}`,
  );
  const other = createOpenAI({ baseURL: `${URL_}/v1`, apiKey: WRONG_KEY });
  error = await rejects(make(other.image("gpt-image-1")), APICallError);
  expect(
    error.statusCode === 401 && error.data.error.code === "invalid_api_key",
    `${error.statusCode} ${JSON.stringify(error.data)}`,
  );
});

for (const id of ["dall-e-3", "gpt-image-1", "builtin"]) {
  check(`openai-compatible: generate, ${id}`, async () => {
    await make(compatible.imageModel(id));
  });
}

check("openai-compatible: n=2", async () => {
  const { pictures } = await make(compatible.imageModel("builtin"), { n: 2 });
  expect(difference(...pictures) > 0.5, "the two pictures are the same");
});

check("openai-compatible: the hub's own parameters through providerOptions", async () => {
  const providerOptions = { hub: { seed: 8, num_inference_steps: 4, response_format: "b64_json" } };
  const [one, other] = [
    await make(compatible.imageModel("builtin"), { providerOptions }),
    await make(compatible.imageModel("builtin"), { providerOptions }),
  ];
  expect(one.result.image.base64 === other.result.image.base64, "the same seed gave another picture");
});

check("openai-compatible: edit, one and two images", async () => {
  for (const images of [[bytes], [bytes, await sourcePicture({ colour: "red" })]]) {
    const { pictures } = await make(compatible.imageModel("builtin"), { prompt: { text: EDIT_PROMPT, images } });
    await expectEdit(pictures[0], bytes);
  }
});

check("openai-compatible: edit with a mask, the rest stays", async () => {
  const prompt = { text: EDIT_PROMPT, images: [bytes], mask: await maskPicture() };
  const { pictures } = await make(compatible.imageModel("builtin"), { prompt });
  await expectMaskedEdit(pictures[0], bytes);
});

check("openai-compatible: errors carry the hub's words", async () => {
  const error = await rejects(make(compatible.imageModel("no-such-model")), APICallError);
  expect(error.statusCode === 404 && error.message.includes("no-such-model"), `${error.statusCode} ${error.message}`);
});

await run();
