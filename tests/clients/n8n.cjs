// n8n's OpenAI node: the compiled image operations and model pickers of @n8n/n8n-nodes-langchain, with n8n-core's real
// request and binary helpers. Stood in for: the workflow editor (parameters come from an object) and the store of
// credentials (the "OpenAI" credential: API key and base URL).

"use strict";

const path = require("node:path");

const modules = path.join(process.env.CONFORMANCE_FOLDER, "node_modules");
const core = path.join(modules, "n8n-core/dist/execution-engine/node-execution-context/utils");
const node = path.join(modules, "@n8n/n8n-nodes-langchain/dist/nodes/vendors/OpenAi");
const { getRequestHelperFunctions } = require(path.join(core, "request-helper-functions.js"));
const generate = require(path.join(node, "v2/actions/image/generate.operation.js"));
const edit = require(path.join(node, "v2/actions/image/edit.operation.js"));
const generateV1 = require(path.join(node, "v1/actions/image/generate.operation.js"));
const { imageGenerateModelSearch } = require(path.join(node, "methods/listSearch.js"));

/** What the node sees of n8n while it runs: `this` of its functions. */
function execution(parameters, { key, version = 2.3, binary = {} } = {}) {
  const about = { name: "OpenAI", type: "openAi", typeVersion: version, parameters: {}, credentials: {} };
  const credentials = { apiKey: key, url: `${process.env.CONFORMANCE_URL}/v1`, header: false };
  const credentialsHelper = {
    getParentTypes: () => [],
    preAuthentication: async () => undefined,
    // as the credential's own `authenticate`: Authorization: Bearer KEY
    authenticate: async (data, _type, options) => ({
      ...options,
      headers: { ...options.headers, Authorization: `Bearer ${data.apiKey}` },
    }),
  };
  const additionalData = { credentialsHelper, hooks: { runHook: async () => undefined } };
  const context = {
    getNode: () => about,
    getNodeParameter: (name, _item, fallback) => structuredClone(parameters[name] ?? fallback),
    getCredentials: async () => ({ ...credentials }),
    logger: console,
  };
  context.helpers = {
    ...getRequestHelperFunctions({ id: "workflow" }, about, additionalData),
    assertBinaryData: (_item, name) => {
      if (!binary[name]) throw new Error(`no binary field ${name}`);
      return { fileName: binary[name].name, mimeType: binary[name].type };
    },
    getBinaryDataBuffer: async (_item, name) => binary[name].data,
    binaryToBuffer: async (data) => data,
    prepareBinaryData: async (data) => ({ bytes: data, mimeType: "image/png" }),
  };
  for (const [name, helper] of Object.entries(context.helpers)) context.helpers[name] = helper.bind(context);
  return context;
}

async function main() {
  const {
    EDIT_PROMPT,
    KEY,
    PROMPT,
    SMALL,
    WRONG_KEY,
    check,
    difference,
    expect,
    expectEdit,
    expectMaskedEdit,
    linked,
    maskPicture,
    opened,
    rejects,
    run,
    sourcePicture,
  } = await import("./picture-checks.mjs");
  const bytes = await sourcePicture();
  const source = { name: "source.png", type: "image/png", data: bytes };
  const call = (operation, parameters, options = {}) =>
    operation.execute.call(execution(parameters, { key: KEY, ...options }), 0);

  check("models: the picker lists dall-e and gpt-image ids", async () => {
    const { results } = await imageGenerateModelSearch.call(execution({}, { key: KEY }));
    const ids = results.map((each) => each.value);
    for (const id of ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini"])
      expect(ids.includes(id), `${id} is not picked: ${ids}`);
    const { results: few } = await imageGenerateModelSearch.call(execution({}, { key: KEY }), "dall-e-3");
    expect(few.length === 1 && few[0].value === "dall-e-3", few);
  });

  for (const modelId of ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini"]) {
    check(`generate: ${modelId}`, async () => {
      const size = modelId === "dall-e-3" ? "1024x1024" : SMALL;
      const items = await call(generate, { modelId, prompt: PROMPT, options: { size } });
      expect(items.length === 1, `${items.length} items`);
      await opened(items[0].binary.data.bytes, { size });
    });
  }

  check("generate: dall-e-3, links, hd and natural", async () => {
    const options = { returnImageUrls: true, dalleQuality: "hd", style: "natural", size: "1024x1024" };
    const [item] = await call(generate, { modelId: "dall-e-3", prompt: PROMPT, options });
    await linked(item.json.url, { size: "1024x1024" });
  });

  check("generate: n=2 into a field of one's own", async () => {
    const options = { n: 2, size: SMALL, binaryPropertyOutput: "picture" };
    const items = await call(generate, { modelId: "dall-e-2", prompt: PROMPT, options });
    expect(items.length === 2, `${items.length} items`);
    const [one, other] = await Promise.all(items.map((item) => opened(item.binary.picture.bytes)));
    expect(difference(one, other) > 0.5, "the two pictures are the same");
  });

  check("generate: gpt-image-1 with its options", async () => {
    const options = { quality: "low", size: "1536x1024" };
    const [item] = await call(generate, { modelId: "gpt-image-1", prompt: PROMPT, options });
    await opened(item.binary.data.bytes, { size: "1536x1024" });
  });

  check("generate: node version 1", async () => {
    const parameters = { model: "dall-e-3", prompt: PROMPT, options: { size: "1024x1024" } };
    const [item] = await call(generateV1, parameters, { version: 1.8 });
    await opened(item.binary.data.bytes, { size: "1024x1024" });
  });

  check("edit: gpt-image-1, one image, its defaults", async () => {
    const parameters = {
      modelId: "gpt-image-1",
      prompt: EDIT_PROMPT,
      n: 1,
      size: SMALL,
      quality: "auto",
      images: { values: [{ binaryPropertyName: "data" }] },
    };
    const [item] = await call(edit, parameters, { binary: { data: source } });
    await expectEdit(await opened(item.binary.data.bytes), bytes);
  });

  check("edit: gpt-image-1, two images and options", async () => {
    const parameters = {
      modelId: "gpt-image-1",
      prompt: EDIT_PROMPT,
      n: 1,
      size: SMALL,
      quality: "low",
      images: { values: [{ binaryPropertyName: "data" }, { binaryPropertyName: "second" }] },
      options: {
        background: "opaque",
        inputFidelity: "high",
        outputFormat: "jpeg",
        outputCompression: 80,
        user: "someone",
      },
    };
    const second = {
      name: "other.jpg",
      type: "image/jpeg",
      data: await sourcePicture({ colour: "red", kind: "jpeg" }),
    };
    const [item] = await call(edit, parameters, { binary: { data: source, second } });
    await expectEdit(await opened(item.binary.data.bytes, { kind: "jpeg" }), bytes);
  });

  check("edit: compression beside png is accepted", async () => {
    const parameters = {
      modelId: "gpt-image-1",
      prompt: EDIT_PROMPT,
      size: SMALL,
      images: { values: [{ binaryPropertyName: "data" }] },
      options: { outputCompression: 100 },
    };
    const [item] = await call(edit, parameters, { binary: { data: source } });
    await opened(item.binary.data.bytes);
  });

  check("edit: with a mask, the rest stays", async () => {
    const parameters = {
      modelId: "gpt-image-1",
      prompt: EDIT_PROMPT,
      size: SMALL,
      images: { values: [{ binaryPropertyName: "data" }] },
      options: { imageMask: "mask" },
    };
    const mask = { name: "mask.png", type: "image/png", data: await maskPicture() };
    const [item] = await call(edit, parameters, { binary: { data: source, mask } });
    await expectMaskedEdit(await opened(item.binary.data.bytes), bytes);
  });

  check("edit: dall-e-2, links and base64", async () => {
    const parameters = { modelId: "dall-e-2", prompt: EDIT_PROMPT, n: 1, size: SMALL, binaryPropertyName: "data" };
    const [link] = await call(edit, { ...parameters, responseFormat: "url" }, { binary: { data: source } });
    await expectEdit(await linked(link.json.url), bytes);
    const [item] = await call(edit, { ...parameters, responseFormat: "b64_json" }, { binary: { data: source } });
    await expectEdit(await opened(item.binary.data.bytes), bytes);
  });

  check("error: unknown model, bad size, wrong key become NodeApiError with the hub's words", async () => {
    let error = await rejects(call(generate, { modelId: "dall-e-none", prompt: PROMPT, options: {} }));
    expect(
      error.constructor.name === "NodeApiError" && error.httpCode === "404",
      `${error.constructor.name} ${error.httpCode}`,
    );
    expect(
      JSON.stringify([error.message, error.description, error.messages]).includes("dall-e-none"),
      `${error.message} ${error.description}`,
    );
    error = await rejects(call(generate, { modelId: "dall-e-2", prompt: PROMPT, options: { size: "huge" } }));
    expect(
      error.httpCode === "400" && JSON.stringify([error.message, error.description]).includes("size"),
      `${error.message} ${error.description}`,
    );
    error = await rejects(call(generate, { modelId: "dall-e-2", prompt: PROMPT, options: {} }, { key: WRONG_KEY }));
    expect(error.httpCode === "401", `${error.httpCode}`);
  });

  await run();
}

main();
