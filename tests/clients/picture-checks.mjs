// What the JavaScript client programs share; the twin of picture_checks.py. Needs sharp and Node's own modules.

import sharp from "sharp";

export const URL_ = process.env.CONFORMANCE_URL;
export const KEY = process.env.CONFORMANCE_KEY;
export const SECOND_KEY = process.env.CONFORMANCE_SECOND_KEY;
export const WRONG_KEY = "sk-conformance-of-another-hub-0123456789";
export const SIDE = 256;
export const SMALL = "256x256";
export const PROMPT = "a red circle on a white background";
export const EDIT_PROMPT = "a green square on a white background";

const checks = [];

/** Adds a check. It fails by throwing. */
export function check(name, run) {
  checks.push([name, run]);
}

/** Runs all checks in order, reports each as a JSON line, and ends the process. */
export async function run() {
  const tell = (line) => new Promise((done) => process.stdout.write(`${JSON.stringify(line)}\n`, done));
  console.log = console.info = console.warn = console.error; // whatever a client prints is noise
  const only = process.env.CONFORMANCE_ONLY ?? "";
  const chosen = checks.filter(([name]) => name.includes(only));
  await tell({ plan: chosen.map(([name]) => name) });
  for (const [name, work] of chosen) {
    try {
      await work();
      await tell({ check: name, ok: true, detail: "" });
    } catch (error) {
      console.error(error);
      const where = /program\/[^)\n]*/.exec((error?.stack ?? "").replace(/.*picture-checks.*\n/g, ""));
      await tell({
        check: name,
        ok: false,
        detail: `${error?.name}: ${String(error?.message).slice(0, 500)} ${where ?? ""}`,
      });
    }
  }
  process.exit(0);
}

/** Fails the check where the condition does not hold. */
export function expect(condition, words) {
  if (!condition) throw new Error(typeof words === "string" ? words : JSON.stringify(words)?.slice(0, 500));
}

/** The error that the promise rejects with; fails where it resolves. `kind` may be a class. */
export async function rejects(promise, kind = Error) {
  let made;
  try {
    made = await promise;
  } catch (error) {
    expect(error instanceof kind, `${kind.name} expected, got ${error?.constructor?.name}: ${error?.message}`);
    return error;
  }
  throw new Error(`an error was expected, got ${JSON.stringify(made)?.slice(0, 300)}`);
}

// Pictures

/** A triangle on an uneven blue ground, so that a changed pixel shows. */
export async function sourcePicture({ side = SIDE, kind = "png", colour = "yellow" } = {}) {
  const raw = Buffer.alloc(side * side * 3);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++)
      raw.set([(x * 32) / side, (y * 64) / side, 100 + (x * 155) / side], (y * side + x) * 3);
  }
  const [top, bottom] = [side / 5, (side * 4) / 5];
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${side}" height="${side}">
    <polygon points="${side / 2},${top} ${top},${bottom} ${bottom},${bottom}" fill="${colour}"/></svg>`;
  return sharp(raw, { raw: { width: side, height: side, channels: 3 } })
    .composite([{ input: Buffer.from(svg) }])
    .removeAlpha()
    .toFormat(kind)
    .toBuffer();
}

/** Opaque, but for a transparent square in the middle: the part to edit. */
export async function maskPicture(side = SIDE) {
  const raw = Buffer.alloc(side * side * 4);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) raw[(y * side + x) * 4 + 3] = inHole(x, y, side) ? 0 : 255;
  }
  return sharp(raw, { raw: { width: side, height: side, channels: 4 } })
    .png()
    .toBuffer();
}

function inHole(x, y, side) {
  return x >= side / 4 && x < (side * 3) / 4 && y >= side / 4 && y < (side * 3) / 4;
}

async function pixels(data) {
  const { data: raw, info } = await sharp(data)
    .removeAlpha()
    .toColourspace("srgb")
    .raw()
    .toBuffer({ resolveWithObject: true });
  expect(info.channels === 3, `the picture has ${info.channels} channels`);
  return { raw, width: info.width, height: info.height };
}

/** Decodes bytes or base64 wholly; fails where the picture has another format or size, or is blank. */
export async function opened(data, { size = SMALL, kind = "png" } = {}) {
  const bytes = typeof data === "string" ? Buffer.from(data, "base64") : Buffer.from(data);
  const { format } = await sharp(bytes).metadata();
  expect(format === kind, `the picture is ${format}, not ${kind}`);
  const picture = await pixels(bytes);
  if (size !== null) {
    expect(
      `${picture.width}x${picture.height}` === size,
      `the picture is ${picture.width}x${picture.height}, not ${size}`,
    );
  }
  const mean = picture.raw.reduce((sum, value) => sum + value, 0) / picture.raw.length;
  const spread = Math.sqrt(picture.raw.reduce((sum, value) => sum + (value - mean) ** 2, 0) / picture.raw.length);
  expect(spread > 5, `the picture is blank: its pixels spread by ${spread.toFixed(1)}`);
  return picture;
}

/** Mean absolute difference of two pictures of one size, in 255ths. */
export function difference(one, other) {
  expect(one.raw.length === other.raw.length, "the pictures have different sizes");
  let sum = 0;
  for (let i = 0; i < one.raw.length; i++) sum += Math.abs(one.raw[i] - other.raw[i]);
  return sum / one.raw.length;
}

/** Whether the picture shows what PROMPT asks for. */
export function expectRedCircle(picture) {
  let [red, white] = [0, 0];
  for (let i = 0; i < picture.raw.length; i += 3) {
    const [r, g, b] = picture.raw.subarray(i, i + 3);
    if (r > 150 && g < 110 && b < 110) red++;
    if (Math.min(r, g, b) > 200) white++;
  }
  const all = picture.raw.length / 3;
  expect(red / all > 0.02 && red / all < 0.9, `${((100 * red) / all).toFixed(0)}% of the pixels are red`);
  expect(white / all > 0.1, `${((100 * white) / all).toFixed(0)}% of the pixels are white`);
}

/** Whether an edit changed the source. */
export async function expectEdit(picture, source, least = 1) {
  const changed = difference(picture, await pixels(source));
  expect(changed > least, `the edit is the source: they differ by ${changed.toFixed(2)}/255 on average`);
}

/** Whether the picture is the source outside the hole of the mask, and something else inside. */
export async function expectMaskedEdit(picture, source) {
  const original = await pixels(source);
  expect(original.raw.length === picture.raw.length, "the edit has another size");
  let [worst, inside, count] = [0, 0, 0];
  for (let i = 0; i < picture.raw.length; i++) {
    const pixel = Math.floor(i / 3);
    const change = Math.abs(picture.raw[i] - original.raw[i]);
    if (inHole(pixel % picture.width, Math.floor(pixel / picture.width), picture.width))
      [inside, count] = [inside + change, count + 1];
    else worst = Math.max(worst, change);
  }
  expect(worst <= 2, `a pixel outside the mask changed by ${worst}/255`);
  expect(inside / count > 3, `inside the mask nothing changed: ${(inside / count).toFixed(2)}/255 on average`);
}

/** Whether previews come nearer to the final picture, one after the other. */
export function expectNearing(partials, final) {
  const distances = partials.map((one) => difference(one, final));
  const falling = distances.every((distance, i) => i === 0 || distance <= distances[i - 1]);
  expect(falling, `previews do not near the final picture: ${distances}`);
  expect(distances.length < 2 || distances.at(-1) < distances[0], `all previews are alike: ${distances}`);
}

/** The picture behind a link; checks what clients need of links: no key, no query, extension and content type. */
export async function linked(url, { size = SMALL, kind = "png" } = {}) {
  expect(typeof url === "string" && url.startsWith(`${URL_}/`), `the link leads to another origin: ${url}`);
  const path = new URL(url);
  expect(!path.search && !path.hash, `the link is not whole in its path: ${url}`);
  expect(
    { png: /\.png$/, jpeg: /\.jpe?g$/, webp: /\.webp$/ }[kind].test(path.pathname),
    `no extension of ${kind}: ${url}`,
  );
  const answer = await fetch(url);
  expect(answer.status === 200, `the link answers ${answer.status} without a key`);
  expect(answer.headers.get("content-type") === `image/${kind}`, `content type ${answer.headers.get("content-type")}`);
  return opened(Buffer.from(await answer.arrayBuffer()), { size, kind });
}

/** Status and JSON of a plain POST, for what a client's API cannot say. */
export async function post(path, body, key = KEY) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(URL_ + path, { method: "POST", headers, body: JSON.stringify(body) });
  return { status: answer.status, body: await answer.json() };
}
