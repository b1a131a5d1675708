// One invocation by AIGNE's client whose patience is TIMEOUT milliseconds (it reads that variable when it is loaded, so
// it needs a process of its own; 60 seconds where it is not set). Run by aigne.mjs. Prints how it went as JSON.

import { AIGNEHubImageModel } from "@aigne/aigne-hub";
import { KEY, PROMPT, SMALL, URL_ } from "./picture-checks.mjs";

const start = Date.now();
console.log = console.info = console.warn = console.error;
const model = new AIGNEHubImageModel({ baseURL: URL_, apiKey: KEY, model: "aignehub/builtin" });
const modelOptions = { size: SMALL, num_inference_steps: Number(process.argv[2]) };
const { images } = await model.client.invoke({ prompt: PROMPT, outputFileType: "url", modelOptions });
process.stdout.write(JSON.stringify({ images, milliseconds: Date.now() - start }), () => process.exit(0));
