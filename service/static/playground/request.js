// The question as a request of the OpenAI dialect, and the same request for a terminal.

const ENDPOINT = "v1/chat/completions";

export class ServerError extends Error {
  // code: the server's stable word; empty when the server could not be reached.
  constructor(message, code = "", param = null) {
    super(message);
    this.code = code;
    this.param = param;
  }
}

// What a person can do about an error, by its code; for the others the server's own words do.
const ADVICE = {
  "": "The server cannot be reached. Is it running?",
  api_key_missing: "This server asks for an API key: open “Options” and type yours.",
  api_key_invalid: "This server does not know that API key: check it under “Options”.",
  body_too_large: "These files are too large together. Send fewer or smaller ones.",
  context_length_exceeded: "This is more than the model can take in at once: send fewer or smaller pictures, fewer pages, or a shorter text.",
  deadline_exceeded: "The answer took too long. Ask for less, or try again when the server is less busy.",
  engine_starting: "The model is still being loaded. Try again in a moment.",
  engine_restarting: "The model is being restarted. Try again in a moment.",
  image_format_unsupported: "This kind of file cannot be read here. Try JPEG, PNG or WebP.",
  image_invalid: "This picture is damaged and cannot be read.",
  image_truncated: "This picture is incomplete: its end is missing.",
  overloaded: "The server is busy. Try again in a moment.",
  pdf_encrypted: "This PDF is protected by a password and cannot be read.",
  rate_limited: "You have used up what your API key allows for now. Try again a little later.",
};

export function adviceFor(error) {
  const advice = ADVICE[error.code] ?? error.message;
  const place = /content\[([0-9]+)\]/.exec(error.param ?? "");
  return place === null ? advice : `Picture ${Number(place[1]) + 1}: ${advice}`;
}

export async function buildBody(files, text, options, model) {
  const parts = await Promise.all(files.map((file) => part(file, options.pages)));
  const messages = [{ role: "user", content: [...parts, { type: "text", text }] }];
  if (options.system) messages.unshift({ role: "system", content: options.system });
  const body = { model, messages, temperature: options.temperature };
  if (options.maxTokens) body.max_tokens = options.maxTokens;
  if (options.seed !== null) body.seed = options.seed;
  return body;
}

async function part(file, pages) {
  const url = await dataUrl(file);
  if (file.type.startsWith("video/")) return { type: "video_url", video_url: { url } };
  if (file.type === "application/pdf") {
    const document = { file_data: url, filename: file.name };
    if (pages) document.pages = pages;
    return { type: "file", file: document };
  }
  return { type: "image_url", image_url: { url } };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      // A browser does not know every type; the server looks at the bytes, not at this word.
      const known = file.type !== "" ? file.type : "image/unknown";
      resolve(`data:${known};base64,${reader.result.slice(reader.result.indexOf(",") + 1)}`);
    });
    reader.addEventListener("error", () => reject(new ServerError(`${file.name} cannot be read.`, "file")));
    reader.readAsDataURL(file);
  });
}

export function headers(key) {
  const common = { "Content-Type": "application/json" };
  return key ? { ...common, Authorization: `Bearer ${key}` } : common;
}

// Asks, and calls `onEvent` with every chunk of the stream; returns the response's headers.
export async function ask(body, key, signal, onEvent) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await post(ENDPOINT, streamed, key, signal);
  let pending = "";
  let ended = false;
  for await (const text of texts(response.body)) {
    const events = (pending + text).split("\n\n");
    pending = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((each) => each.startsWith("data: "));
      if (line === undefined) continue;
      if (line === "data: [DONE]") {
        ended = true;
        continue;
      }
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new ServerError(chunk.error.message, chunk.error.code ?? "");
      onEvent(chunk);
    }
  }
  if (!ended) throw new ServerError("The connection broke off before the answer was complete.", "broken");
  return response.headers;
}

async function* texts(stream) {
  // Not `for await` over the stream: not every browser can.
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export async function post(path, body, key, signal) {
  let response;
  try {
    response = await fetch(path, { method: "POST", headers: headers(key), body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.");
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new ServerError(error.message, error.code ?? "unknown", error.param);
  } catch {
    return new ServerError(`The server answered with status ${response.status}.`, "unknown");
  }
}

export async function getJson(path, key) {
  const response = await fetch(path, { headers: headers(key) }).catch(() => null);
  if (response === null) throw new ServerError("The server cannot be reached.");
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// The same request with the files read by the shell, so that the text stays short.
export function asCurl(body, files, hasKey) {
  const json = JSON.stringify(withMarks(body), null, 2)
    .replaceAll("'", "'\\''")
    .replaceAll(MARK, (_, place) => `'"$(base64 -w0 ${shellQuoted(files[place].name)})"'`);
  const key = hasKey ? ' \\\n  -H "Authorization: Bearer $LOUPE_API_KEY"' : "";
  return `printf '%s' '${json}' |\n  curl ${new URL(ENDPOINT, location.href)} -H 'Content-Type: application/json'${key} -d @-`;
}

// The same request for the official client of the dialect.
export function asPython(body, files, hasKey) {
  const { messages, model, ...rest } = withMarks(body);
  const literal = python(messages, 1).replaceAll(
    new RegExp(`${MARK.source}"`, "g"),
    (_, place) => `" + base64_of(${JSON.stringify(files[place].name)})`,
  );
  const others = Object.entries(rest).map(([name, value]) => `    ${name}=${python(value, 1)},\n`);
  return `import base64
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url="${new URL("v1", location.href)}", api_key=${hasKey ? '"YOUR KEY"' : '"none"'})


def base64_of(path):
    return base64.b64encode(Path(path).read_bytes()).decode()


completion = client.chat.completions.create(
    model=${JSON.stringify(model)},
    messages=${literal},
${others.join("")})
print(completion.choices[0].message.content)
`;
}

const MARK = /\\u0000([0-9]+)\\u0000/g; // as JSON spells it

// Each file's content gives way to a mark with its place among the files.
function withMarks(body) {
  let place = 0;
  return JSON.parse(JSON.stringify(body), (_, value) => {
    if (typeof value !== "string" || !value.startsWith("data:")) return value;
    return `${value.slice(0, value.indexOf(",") + 1)}\u0000${place++}\u0000`;
  });
}

function shellQuoted(name) {
  return `'${name.replaceAll("'", "'\\''")}'`;
}

function python(value, depth) {
  const indent = "    ".repeat(depth);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    const items = value.map((each) => `${indent}    ${python(each, depth + 1)},\n`).join("");
    return `[\n${items}${indent}]`;
  }
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, each]) => `${indent}    ${JSON.stringify(name)}: ${python(each, depth + 1)},\n`);
    return `{\n${items.join("")}${indent}}`;
  }
  return JSON.stringify(value);
}
