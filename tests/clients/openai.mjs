// OpenAI's own JavaScript client.

import OpenAI, { toFile } from "openai";
import {
  EDIT_PROMPT,
  KEY,
  PROMPT,
  SECOND_KEY,
  SMALL,
  URL_,
  WRONG_KEY,
  check,
  difference,
  expect,
  expectEdit,
  expectMaskedEdit,
  expectNearing,
  expectRedCircle,
  linked,
  maskPicture,
  opened,
  rejects,
  run,
  sourcePicture,
} from "./picture-checks.mjs";

const client = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: KEY, maxRetries: 0, timeout: 60_000 });
const bytes = await sourcePicture();
const source = () => toFile(bytes, "source.png", { type: "image/png" });

function only(answer, field, n = 1) {
  expect(answer.data.length === n, `${answer.data.length} pictures, not ${n}`);
  const other = field === "url" ? "b64_json" : "url";
  for (const each of answer.data) {
    expect(each[field], `a picture has no ${field}`);
    expect(!(other in each), `a picture has ${other} beside ${field}`);
  }
  return answer.data.map((each) => each[field]);
}

function expectUsage(usage, { images = false } = {}) {
  expect(usage, "there is no usage");
  expect(usage.input_tokens > 0 && usage.output_tokens > 0, usage);
  expect(usage.total_tokens === usage.input_tokens + usage.output_tokens, usage);
  const { text_tokens, image_tokens } = usage.input_tokens_details;
  expect(text_tokens + image_tokens === usage.input_tokens, usage);
  expect(image_tokens > 0 === images, usage);
}

check("models: list and retrieve", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  for (const id of ["dall-e-2", "dall-e-3", "gpt-image-1"]) expect(ids.includes(id), `${id} is not listed: ${ids}`);
  const model = await client.models.retrieve("gpt-image-1");
  expect(model.id === "gpt-image-1" && model.object === "model", model);
});

check("generate: no model, link by default", async () => {
  const answer = await client.images.generate({ prompt: PROMPT, size: SMALL, seed: 1 });
  expectRedCircle(await linked(only(answer, "url")[0]));
});

check("generate: dall-e-3, hd, vivid, base64", async () => {
  const answer = await client.images.generate({
    model: "dall-e-3",
    prompt: PROMPT,
    size: "1024x1024",
    quality: "hd",
    style: "vivid",
    response_format: "b64_json",
  });
  await opened(only(answer, "b64_json")[0], { size: "1024x1024" });
});

check("generate: gpt-image-1, resolved fields and usage", async () => {
  const answer = await client.images.generate({
    model: "gpt-image-1",
    prompt: PROMPT,
    size: "auto",
    quality: "auto",
    background: "auto",
  });
  await opened(only(answer, "b64_json")[0], { size: answer.size });
  expect(["low", "medium", "high"].includes(answer.quality), `quality ${answer.quality}`);
  expect(["opaque", "transparent"].includes(answer.background), `background ${answer.background}`);
  expect(answer.output_format === "png", `output_format ${answer.output_format}`);
  expectUsage(answer.usage);
});

check("generate: n=2 gives two pictures", async () => {
  const answer = await client.images.generate({ model: "dall-e-2", prompt: PROMPT, size: SMALL, n: 2 });
  const [one, other] = await Promise.all(only(answer, "url", 2).map((url) => linked(url)));
  expect(difference(one, other) > 0.5, "the two pictures are the same");
});

check("generate: null parameters mean absent", async () => {
  const answer = await client.images.generate({
    prompt: PROMPT,
    size: SMALL,
    model: null,
    n: null,
    quality: null,
    style: null,
    response_format: null,
    background: null,
    output_format: null,
    output_compression: null,
    moderation: null,
    stream: null,
    partial_images: null,
  });
  await linked(only(answer, "url")[0]);
});

check("generate: parallel n=1 gives pictures of their own", async () => {
  const make = () =>
    client.images.generate({ model: "dall-e-3", prompt: PROMPT, size: SMALL, response_format: "b64_json" });
  const answers = await Promise.all([make(), make(), make()]);
  const pictures = await Promise.all(answers.map((answer) => opened(only(answer, "b64_json")[0])));
  expect(difference(pictures[0], pictures[1]) > 0.5 && difference(pictures[1], pictures[2]) > 0.5, "two are the same");
});

check("generate: webp and jpeg", async () => {
  for (const kind of ["webp", "jpeg"]) {
    const answer = await client.images.generate({
      model: "gpt-image-1",
      prompt: PROMPT,
      size: SMALL,
      output_format: kind,
      output_compression: 70,
    });
    await opened(only(answer, "b64_json")[0], { kind });
    expect(answer.output_format === kind, `output_format ${answer.output_format}`);
  }
});

check("generate: a seed is reproducible", async () => {
  const make = (seed) => client.images.generate({ model: "gpt-image-1", prompt: PROMPT, size: SMALL, seed });
  const [first, again, other] = [await make(5), await make(5), await make(6)].map(
    (answer) => only(answer, "b64_json")[0],
  );
  expect(first === again, "the same seed gave another picture");
  expect(first !== other, "another seed gave the same picture");
});

check("edit: one image", async () => {
  const answer = await client.images.edit({
    model: "dall-e-2",
    image: await source(),
    prompt: EDIT_PROMPT,
    size: SMALL,
  });
  await expectEdit(await linked(only(answer, "url")[0]), bytes);
});

check("edit: a list of images, gpt-image-1, usage", async () => {
  const image = [
    await source(),
    await toFile(await sourcePicture({ kind: "jpeg", colour: "red" }), "other.jpg", { type: "image/jpeg" }),
  ];
  const answer = await client.images.edit({
    model: "gpt-image-1",
    image,
    prompt: EDIT_PROMPT,
    size: SMALL,
    quality: "low",
  });
  await expectEdit(await opened(only(answer, "b64_json")[0]), bytes);
  expectUsage(answer.usage, { images: true });
});

check("edit: with a mask, the rest stays", async () => {
  const mask = await toFile(await maskPicture(), "mask.png", { type: "image/png" });
  const answer = await client.images.edit({
    model: "gpt-image-1",
    image: await source(),
    mask,
    prompt: EDIT_PROMPT,
    size: SMALL,
  });
  await expectMaskedEdit(await opened(only(answer, "b64_json")[0]), bytes);
});

check("variation", async () => {
  const answer = await client.images.createVariation({ image: await source(), size: SMALL, n: 2 });
  await Promise.all(only(answer, "url", 2).map((url) => linked(url)));
});

async function expectStream(stream, prefix, partials) {
  const events = [];
  for await (const event of stream) events.push(event);
  const wanted = [...Array(partials).fill(`${prefix}.partial_image`), `${prefix}.completed`];
  expect(
    JSON.stringify(events.map((event) => event.type)) === JSON.stringify(wanted),
    `events ${events.map((event) => event.type)}`,
  );
  const last = events.at(-1);
  const previews = events.slice(0, -1);
  expect(
    previews.every((event, i) => event.partial_image_index === i),
    "the previews' indexes are not 0, 1, …",
  );
  expectNearing(await Promise.all(previews.map((event) => opened(event.b64_json))), await opened(last.b64_json));
  for (const event of events) {
    expect(
      event.size === SMALL && event.output_format === "png",
      `size ${event.size}, output_format ${event.output_format}`,
    );
    expect(["low", "medium", "high"].includes(event.quality), `quality ${event.quality}`);
    expect(Math.abs(event.created_at - Date.now() / 1000) < 60, `created_at ${event.created_at}`);
  }
  expectUsage(last.usage, { images: prefix === "image_edit" });
}

for (const partial_images of [0, 1, 2, 3]) {
  check(`stream: generation, partial_images=${partial_images}`, async () => {
    const stream = await client.images.generate({
      model: "gpt-image-1",
      prompt: PROMPT,
      size: SMALL,
      stream: true,
      partial_images,
    });
    await expectStream(stream, "image_generation", partial_images);
  });
}

check("stream: edit, partial_images=2", async () => {
  const stream = await client.images.edit({
    model: "gpt-image-1",
    image: await source(),
    prompt: EDIT_PROMPT,
    size: SMALL,
    stream: true,
    partial_images: 2,
  });
  await expectStream(stream, "image_edit", 2);
});

check("error: unknown model is NotFoundError, model_not_found", async () => {
  const error = await rejects(client.images.generate({ model: "no-such-model", prompt: PROMPT }), OpenAI.NotFoundError);
  expect(error.code === "model_not_found", `code ${error.code}`);
  expect(error.requestID, "the error has no requestID");
});

check("error: bad n is BadRequestError that names n", async () => {
  for (const n of [0, 11, 1.5, "2"]) {
    const error = await rejects(client.images.generate({ prompt: PROMPT, n }), OpenAI.BadRequestError);
    expect(error.param === "n", `n=${n}: param ${error.param}`);
  }
});

check("error: wrong key is AuthenticationError", async () => {
  const other = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: WRONG_KEY, maxRetries: 0 });
  const error = await rejects(other.images.generate({ prompt: PROMPT }), OpenAI.AuthenticationError);
  expect(error.code === "invalid_api_key", `code ${error.code}`);
});

check("a second key works; x-request-id is visible", async () => {
  const other = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: SECOND_KEY, maxRetries: 0 });
  const answer = await other.images.generate({ prompt: PROMPT, size: SMALL });
  await linked(only(answer, "url")[0]);
  expect(answer._request_id, "no _request_id");
});

await run();
