// AIGNE's own client, @aigne/aigne-hub: its image model against the hub in place of AIGNE Hub.

import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { AIGNEHubImageModel, getAIGNEHubMountPoint, AIGNE_HUB_BLOCKLET_DID } from "@aigne/aigne-hub";
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
  expectRedCircle,
  linked,
  maskPicture,
  opened,
  post,
  rejects,
  run,
  sourcePicture,
} from "./picture-checks.mjs";

const bytes = await sourcePicture();
const model = (id = "aignehub/builtin", options = {}) =>
  new AIGNEHubImageModel({ baseURL: `${URL_}/anything/below`, apiKey: KEY, model: id, ...options });
const raw = (input, options = {}) => ({
  input: {
    prompt: PROMPT,
    size: SMALL,
    outputFileType: "url",
    modelOptions: { model: "builtin", ...options },
    ...input,
  },
  agent: "$CHAT_MODEL",
  options: {},
});
const file = (data, mimeType = "image/png") => ({
  type: "file",
  data: data.toString("base64"),
  mimeType,
  filename: "source.png",
});

check("discovery: the mount point", async () => {
  const where = await getAIGNEHubMountPoint(`${URL_}/some/path`, AIGNE_HUB_BLOCKLET_DID);
  expect(where.replace(/\/$/, "") === URL_, where);
});

check("credential: leads to /api/v2/image", async () => {
  const { url, apiKey, model: id } = await model().credential;
  expect(url === `${URL_}/api/v2/image` && apiKey === KEY && id === "builtin", { url, id });
});

check("process: answers links, usage and model", async () => {
  const input = { prompt: PROMPT, outputFileType: "url", modelOptions: { size: SMALL, seed: 1 } };
  const { images, usage, model: id } = await model().process(input, {});
  expect(images.length === 1 && images[0].type === "url", images);
  expectRedCircle(await linked(images[0].url));
  expect(usage.inputTokens > 0 && usage.outputTokens > 0, usage);
  expect(typeof id === "string" && id, "the answer names no model");
});

check("invoke: outputFileType url", async () => {
  const { images } = await model().invoke({ prompt: PROMPT, outputFileType: "url", modelOptions: { size: SMALL } });
  expect(images.length === 1, images);
  expect(images[0].type === "url" && [undefined, "image/png"].includes(images[0].mimeType), images[0]);
  await linked(images[0].url);
});

check("invoke: outputFileType file", async () => {
  const { images } = await model().invoke({ prompt: PROMPT, outputFileType: "file", modelOptions: { size: SMALL } });
  expect(images[0].type === "file" && images[0].mimeType === "image/png", { ...images[0], data: "…" });
  await opened(images[0].data);
});

check("invoke: its default, files on the client's disk", async () => {
  const { images } = await model().invoke({ prompt: PROMPT, modelOptions: { size: SMALL } });
  expect(images[0].type === "local" && images[0].path.endsWith(".png"), images[0]);
  await opened(await readFile(images[0].path));
});

check("invoke: n=2", async () => {
  const { images } = await model().client.invoke({
    prompt: PROMPT,
    n: 2,
    outputFileType: "file",
    modelOptions: { size: SMALL },
  });
  expect(images.length === 2, `${images.length} pictures`);
  const [one, other] = await Promise.all(images.map((image) => opened(image.data)));
  expect(difference(one, other) > 0.5, "the two pictures are the same");
});

check("invoke: dall-e-3 and gpt-image-1 through the hub", async () => {
  for (const id of ["aignehub/dall-e-3", "aignehub/gpt-image-1"]) {
    const { images } = await model(id).client.invoke({
      prompt: PROMPT,
      outputFileType: "file",
      modelOptions: { size: SMALL },
    });
    await opened(images[0].data);
  }
});

check("invoke: more parameters, in modelOptions and in input", async () => {
  const make = (where) => model().client.invoke({ prompt: PROMPT, outputFileType: "file", ...where });
  const inOptions = { modelOptions: { size: SMALL, seed: 4, num_inference_steps: 4 } };
  const inInput = { size: SMALL, seed: 4, num_inference_steps: 4, modelOptions: {} };
  const [one, other] = [await make(inOptions), await make(inInput)].map(({ images }) => images[0].data);
  await opened(one);
  expect(one === other, "the same seed gave another picture");
});

check("edit: an image as a file", async () => {
  const input = { prompt: EDIT_PROMPT, image: [file(bytes)], outputFileType: "file", modelOptions: { size: SMALL } };
  const { images } = await model().client.invoke(input);
  await expectEdit(await opened(images[0].data), bytes);
});

check("edit: an image by the hub's own link", async () => {
  const { images: made } = await model().client.invoke({
    prompt: PROMPT,
    outputFileType: "url",
    modelOptions: { size: SMALL },
  });
  const image = [{ type: "url", url: made[0].url }];
  const input = { prompt: EDIT_PROMPT, image, outputFileType: "file", modelOptions: { size: SMALL } };
  const { images } = await model().client.invoke(input);
  await opened(images[0].data);
  const kept = {
    ...input,
    image: [{ type: "url", url: made[0].url }],
    modelOptions: { size: SMALL, preferInputFileType: "url" },
  };
  await opened((await model().client.invoke(kept)).images[0].data);
});

check("edit: two images", async () => {
  const image = [file(bytes), file(await sourcePicture({ colour: "red", kind: "jpeg" }), "image/jpeg")];
  const { images } = await model().client.invoke({
    prompt: EDIT_PROMPT,
    image,
    outputFileType: "file",
    modelOptions: { size: SMALL },
  });
  await expectEdit(await opened(images[0].data), bytes);
});

check("models(): the catalogue", async () => {
  const models = await model().client.models();
  expect(Array.isArray(models) && models.length > 0, models);
  const own = models.find((each) => each.model.endsWith("builtin"));
  expect(own, `builtin is missing: ${models.map((each) => each.model)}`);
  expect(
    models.every((each) => each.type === "image"),
    "a model has another type than image",
  );
});

check("models(): through AIGNE_HUB_API_URL, as the outer class does", async () => {
  process.env.AIGNE_HUB_API_URL = `${URL_}/`;
  try {
    const models = await AIGNEHubImageModel.models();
    expect(models.length > 0, models);
  } finally {
    delete process.env.AIGNE_HUB_API_URL;
  }
});

check("status of a model", async () => {
  const answer = await fetch(`${URL_}/api/v2/status?model=builtin`, { headers: { Authorization: `Bearer ${KEY}` } });
  expect(answer.status === 200, `status ${answer.status}`);
  expect((await answer.json()).available === true, "it is not available");
});

check("openai/ prefix: generations go to /api/images/generations", async () => {
  const direct = (id) => new AIGNEHubImageModel({ baseURL: `${URL_}/api`, apiKey: KEY, model: `openai/${id}` });
  for (const id of ["dall-e-2", "dall-e-3", "gpt-image-1"]) {
    const { images } = await direct(id).client.invoke({
      prompt: PROMPT,
      outputFileType: "file",
      modelOptions: { size: SMALL },
    });
    await opened(images[0].data);
  }
});

check("openai/ prefix: edits go to /api/images/edits", async () => {
  const direct = new AIGNEHubImageModel({ baseURL: `${URL_}/api`, apiKey: KEY, model: "openai/gpt-image-1" });
  const input = {
    prompt: EDIT_PROMPT,
    image: [file(bytes)],
    outputFileType: "file",
    modelOptions: { size: SMALL, quality: "low" },
  };
  const { images } = await direct.client.invoke(input);
  await expectEdit(await opened(images[0].data), bytes);
});

check("error: unknown model, readable", async () => {
  const error = await rejects(model("aignehub/no-such-model").client.invoke({ prompt: PROMPT }));
  expect(error.message.includes("no-such-model"), error.message);
  expect(!error.message.startsWith("Failed to fetch"), error.message);
});

check("error: bad n and bad size, readable", async () => {
  let error = await rejects(model().client.invoke({ prompt: PROMPT, n: 11 }));
  expect(/\bn\b/.test(error.message) && !error.message.startsWith("Failed to fetch"), error.message);
  error = await rejects(model().client.invoke({ prompt: PROMPT, modelOptions: { size: "huge" } }));
  expect(error.message.includes("size") && error.type === "invalid_request_error", `${error.type} ${error.message}`);
});

check("error: wrong key, readable", async () => {
  const error = await rejects(model("aignehub/builtin", { apiKey: WRONG_KEY }).client.invoke({ prompt: PROMPT }));
  expect(/key/i.test(error.message) && !error.message.startsWith("Failed to fetch"), error.message);
});

check("a local path is refused, and its file is not read", async () => {
  for (const path of ["/etc/hostname", "/etc/passwd"]) {
    const { status, body } = await post(
      "/api/v2/image",
      raw({ image: [{ type: "local", path, mimeType: "image/png" }] }),
    );
    expect(status === 400 && body.error?.message && body.error.type, `${status} ${JSON.stringify(body)}`);
  }
});

/** How many jobs of this key have so many steps. */
async function jobsWith(steps) {
  const answer = await fetch(`${URL_}/v1/images/jobs?limit=100`, { headers: { Authorization: `Bearer ${KEY}` } });
  expect(answer.status === 200, `the jobs are answered with ${answer.status}`);
  return (await answer.json()).data.filter((job) => job.steps === steps).length;
}

check("retries join: identical posts in flight make one picture", async () => {
  const body = raw({ prompt: `${PROMPT}, joined` }, { num_inference_steps: 23 });
  const answers = await Promise.all([1, 2, 3, 4].map(() => post("/api/v2/image", body)));
  for (const { status, body: answer } of answers)
    expect(status === 200, `${status} ${JSON.stringify(answer).slice(0, 300)}`);
  const pictures = await Promise.all(answers.map(({ body: answer }) => linked(answer.images[0].url)));
  for (const picture of pictures) expect(difference(picture, pictures[0]) === 0, "four posts made different pictures");
  expect((await jobsWith(23)) === 1, `four posts made ${await jobsWith(23)} jobs`);
});

check("retries join: its own, after its time-out", async () => {
  const start = Date.now();
  await post("/api/v2/image", raw({}, { num_inference_steps: 61 }));
  const perStep = (Date.now() - start) / 61;
  const patience = Math.round(Math.min(2000, perStep * 400)); // a fast machine cannot be slow for longer
  const steps = Math.min(1000, Math.max(62, Math.ceil((2.2 * patience) / perStep)));
  const program = fileURLToPath(new URL("aigne-retry.mjs", import.meta.url));
  const env = { ...process.env, TIMEOUT: String(patience) };
  const { stdout } = await promisify(execFile)(process.execPath, [program, String(steps)], { env, timeout: 60_000 });
  const { images, milliseconds } = JSON.parse(stdout);
  await linked(images[0].url);
  expect(milliseconds > patience, `the picture came after ${milliseconds} ms, before the client would retry`);
  expect((await jobsWith(steps)) === 1, `its retries made ${await jobsWith(steps)} jobs`);
});

check("another prompt in flight is not joined", async () => {
  const posts = ["red", "blue"].map((colour) =>
    post("/api/v2/image", raw({ prompt: `a ${colour} circle on a white background` })),
  );
  const [one, other] = await Promise.all((await Promise.all(posts)).map(({ body }) => linked(body.images[0].url)));
  expect(difference(one, other) > 1, "two prompts share a picture");
});

for (const path of ["/api/v1/image/generations", "/api/v2/image/generations"]) {
  check(`POST ${path}, as AIGNE Hub's own pages do`, async () => {
    for (const wanted of [{}, { responseFormat: "url" }, { response_format: "b64_json" }]) {
      const { status, body } = await post(path, { model: "builtin", prompt: PROMPT, size: SMALL, ...wanted });
      expect(status === 200, `${status} ${JSON.stringify(body).slice(0, 300)}`);
      const { images, data, model: id, usage } = body;
      expect(images.length === 1 && JSON.stringify(images) === JSON.stringify(data), Object.keys(body));
      expect(id.endsWith("builtin") && usage.inputTokens > 0, { id, usage });
      if (wanted.responseFormat === "url") await linked(images[0].url);
      else if (wanted.response_format) await opened(images[0].b64_json);
      else await (images[0].url ? linked(images[0].url) : opened(images[0].base64));
    }
  });
}

await run();
