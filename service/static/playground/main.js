// The page: what is clicked, typed and shown.

import { Attachments, takeDropsAndPastes } from "./attachments.js";
import { drawBoxes, findBoxes } from "./boxes.js";
import { EXAMPLES, picturesOf } from "./examples.js";
import { renderPreview } from "./preview.js";
import { ServerError, adviceFor, asCurl, asPython, ask, buildBody, getJson, post } from "./request.js";

const KEY_NAME = "loupe-api-key";
const element = (id) => document.getElementById(id);
const attachments = new Attachments(element("pictures"), () => {});

let model = "";
let running = null; // the AbortController of the question under way
let asked = null; // the last question: its body and files

async function loadModel() {
  try {
    const { data } = await getJson("v1/models", key());
    model = data[0].id;
    element("model").textContent = `Model: ${model}`;
  } catch (error) {
    element("model").textContent = error instanceof ServerError ? adviceFor(error) : "No model.";
  }
}

function key() {
  return element("api-key").value.trim();
}

function number(id) {
  const text = element(id).value.trim();
  return text === "" ? null : Number(text);
}

function options() {
  return {
    system: element("system").value.trim(),
    temperature: number("temperature") ?? 0,
    maxTokens: number("max-tokens"),
    seed: number("seed"),
    pages: element("pages").value.trim(),
  };
}

async function askQuestion() {
  if (running !== null) return;
  const files = attachments.files;
  const text = element("question").value.trim() || (files.length ? element("question").placeholder : "");
  if (text === "") {
    showError("Type a question, or choose a picture.");
    element("question").focus();
    return;
  }
  clearAnswer();
  running = new AbortController();
  setBusy(true);
  const answer = new Answer();
  try {
    if (model === "") await loadModel();
    asked = { body: await buildBody(files, text, options(), model), files };
    await ask(asked.body, key(), running.signal, (chunk) => answer.take(chunk));
    answer.finish(files);
  } catch (error) {
    if (error.name === "AbortError") answer.finish(files, "Stopped. ");
    else showError(error instanceof ServerError ? adviceFor(error) : "Something went wrong on this page.");
    if (!(error instanceof ServerError) && error.name !== "AbortError") throw error;
  } finally {
    running = null;
    setBusy(false);
    element("after").hidden = asked === null;
  }
}

class Answer {
  #text = "";
  #usage = null;
  #reason = "";
  #startedAt = performance.now();
  #firstAt = null;

  take(chunk) {
    if (chunk.usage) this.#usage = chunk.usage;
    const [choice] = chunk.choices;
    if (choice === undefined) return;
    const { content, reasoning_content: reasoning } = choice.delta;
    if (reasoning) {
      element("reasoning-details").hidden = false;
      element("reasoning").textContent += reasoning;
    }
    if (content) {
      this.#text += content;
      element("answer").textContent = this.#text;
    }
    if (content || reasoning) this.#firstAt ??= performance.now();
    if (choice.finish_reason) this.#reason = choice.finish_reason;
  }

  finish(files, prefix = "") {
    const seconds = (until) => ((until - this.#startedAt) / 1000).toFixed(2);
    const facts = [`${seconds(performance.now())} s`];
    if (this.#firstAt !== null) facts.push(`first token after ${seconds(this.#firstAt)} s`);
    if (this.#usage) {
      const details = this.#usage.prompt_tokens_details ?? {};
      facts.push(`${this.#usage.prompt_tokens} tokens in (${details.image_tokens ?? 0} of pictures, ${details.cached_tokens ?? 0} cached)`);
      facts.push(`${this.#usage.completion_tokens} out`);
    }
    if (this.#reason === "length") facts.push("cut at the token limit");
    element("figures").textContent = prefix + facts.join(" · ");
    const pictures = files.filter((file) => file.type.startsWith("image/"));
    const boxes = findBoxes(this.#text);
    if (boxes.length && pictures.length) {
      // The answer does not say which picture it means; the last one is asked about most often.
      element("boxes").replaceChildren(drawBoxes(pictures[pictures.length - 1], boxes));
      element("boxes").hidden = false;
    }
  }
}

function clearAnswer() {
  element("answer").textContent = "";
  element("figures").textContent = "";
  element("reasoning").textContent = "";
  element("reasoning-details").hidden = true;
  element("boxes").hidden = true;
  element("boxes").replaceChildren();
  element("error").hidden = true;
  element("after").hidden = true;
  hidePreview();
}

function setBusy(isBusy) {
  element("answer").setAttribute("aria-busy", String(isBusy));
  element("ask").disabled = isBusy;
  element("stop").hidden = !isBusy;
}

function showError(text) {
  element("error").textContent = text;
  element("error").hidden = false;
}

function hidePreview() {
  element("preview").hidden = true;
  element("show-preview").setAttribute("aria-expanded", "false");
}

async function togglePreview() {
  if (!element("preview").hidden) {
    hidePreview();
    return;
  }
  try {
    const response = await post("v1/preview", asked.body, key());
    element("preview").replaceChildren(...renderPreview(await response.json()));
    element("preview").hidden = false;
    element("show-preview").setAttribute("aria-expanded", "true");
  } catch (error) {
    showError(adviceFor(error));
  }
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    element("copied").textContent = `${what} copied.`;
  } catch {
    // Only pages at https or on this machine may write to the clipboard.
    const shown = document.createElement("pre");
    shown.textContent = text;
    element("preview").replaceChildren(shown);
    element("preview").hidden = false;
    element("copied").textContent = "This page may not copy; here it is to select.";
  }
}

function addExamples() {
  for (const example of EXAMPLES) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example.title;
    button.addEventListener("click", async () => {
      attachments.replace(await picturesOf(example));
      element("question").value = example.question;
      await askQuestion();
    });
    element("examples").append(button);
  }
}

function takeFrom(input) {
  input.addEventListener("change", () => {
    attachments.add(input.files);
    input.value = "";
  });
}

element("question-form").addEventListener("submit", (event) => {
  event.preventDefault();
  askQuestion();
});
element("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    askQuestion();
  }
});
element("copy-answer").addEventListener("click", () => copy(element("answer").textContent, "Answer"));
element("copy-curl").addEventListener("click", () => copy(asCurl(asked.body, asked.files, key() !== ""), "curl command"));
element("copy-python").addEventListener("click", () => copy(asPython(asked.body, asked.files, key() !== ""), "Python program"));
element("show-preview").addEventListener("click", togglePreview);
// For this tab alone: gone when it is closed.
element("api-key").value = sessionStorage.getItem(KEY_NAME) ?? "";
element("api-key").addEventListener("change", () => {
  sessionStorage.setItem(KEY_NAME, key());
  loadModel();
});
takeFrom(element("file"));
takeFrom(element("camera"));
takeDropsAndPastes(element("drop"), (files) => attachments.add(files));
addExamples();
loadModel();
