// The conversation: what was asked, what came, and what becomes of both.

import { asJson } from "./code.js";
import { EXAMPLES } from "./examples.js";
import { AnswerError, chat, headers } from "./stream.js";
import { WrongSetting, clearMarks, control, fill, formsInWords, key, mark, requestFields, resetForms } from "./settings.js";
import { make } from "./tokens.js";
import { Turn } from "./turn.js";
import { watch } from "./state.js";

const talk = document.getElementById("talk");
const prompt = document.getElementById("prompt");
const buttons = Object.fromEntries(["send", "stop", "clear"].map((id) => [id, document.getElementById(id)]));
const empty = document.getElementById("empty");
const turns = [];
const touch = matchMedia("(pointer: coarse)"); // where Enter is the only way to a new line, and the button is near
const wide = matchMedia("(min-width: 60rem)"); // as in page.css: the settings stand beside the conversation
const settings = document.getElementById("settings");
let running = null; // the AbortController of the answer under way
let model = "model"; // its name, once the server has told it

/** What the model is told: the turns before `last` that have an answer, and what it asks. */
function messages(last) {
  const told = turns.slice(0, turns.indexOf(last)).filter((turn) => turn.isPart);
  return [...told.flatMap((turn) => turn.messages()), ...last.asks];
}

async function answer(turn) {
  clearMarks();
  const stopping = new AbortController();
  running = stopping;
  arrange();
  const began = performance.now();
  const seen = { first: 0, finish: null, usage: null, ignored: "" };
  try {
    const fields = requestFields(messages(turn));
    turn.asked(fields, key() !== "", model);
    for await (const event of chat(asJson(fields), key(), stopping.signal)) take(turn, event, seen);
    turn.whole = seen.finish !== "length";
    const full = turn.whole ? "" : "max tokens reached";
    const ignored = seen.ignored && `the server made no use of ${seen.ignored}`;
    turn.end("done", [full, timing(seen, began), ignored].filter(Boolean).join(" · "));
  } catch (error) {
    if (error.name === "AbortError") {
      turn.end(turn.answer ? "stopped" : "failed", "stopped");
    } else if (error instanceof AnswerError || error instanceof WrongSetting) {
      turn.end("failed", "", error.message);
      mark(error);
    } else {
      turn.end("failed", "", `This page failed: ${error.message}`);
      throw error;
    }
  } finally {
    running = null;
    arrange();
    follow();
  }
}

function take(turn, event, seen) {
  const follows = atEnd();
  if (event.usage) seen.usage = event.usage;
  if (event.ignored) seen.ignored = event.ignored;
  for (const choice of event.choices) {
    const { content, reasoning, tool_calls: calls } = choice.delta;
    if ((content || reasoning || calls) && !seen.first) seen.first = performance.now();
    if (reasoning) turn.reasoning(reasoning);
    if (content) turn.content(content);
    for (const call of calls ?? []) turn.call(call);
    if (choice.logprobs) turn.scored(choice.logprobs.content);
    if (choice.finish_reason) seen.finish = choice.finish_reason;
  }
  if (follows) follow();
}

function timing({ first, usage }, began) {
  if (!usage) return "";
  const seconds = (performance.now() - began) / 1000;
  const parts = [`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`, `${seconds.toFixed(2)} s`];
  if (first) parts.push(`first after ${((first - began) / 1000).toFixed(2)} s`);
  const decoding = first ? (performance.now() - first) / 1000 : 0;
  if (usage.completion_tokens > 1 && decoding > 0.05) {
    parts.push(`${((usage.completion_tokens - 1) / decoding).toFixed(1)} tokens/s`);
  }
  return parts.join(" · ");
}

// -- the page --------------------------------------------------------------------------------------------------------

function atEnd() {
  return talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
}

function follow() {
  talk.scrollTop = talk.scrollHeight;
}

function arrange() {
  buttons.send.hidden = running !== null;
  buttons.stop.hidden = running === null;
  buttons.clear.hidden = running !== null || turns.length === 0;
  empty.hidden = turns.length > 0;
  // The last answer alone can be asked for again, or be told results: those before it have been built upon.
  for (const found of talk.querySelectorAll(".latest")) {
    found.hidden = running !== null || found.closest(".turn") !== turns.at(-1)?.element;
  }
}

function send() {
  const question = prompt.value.trim();
  if (!question || running) return;
  prompt.value = "";
  grow();
  ask([{ role: "user", content: question }]);
}

function ask(asks) {
  if (running) return;
  const turn = new Turn(asks, { again: repeat, results: ask });
  turns.push(turn);
  if (!wide.matches) settings.open = false; // what is answered is to be seen
  talk.append(turn.element);
  follow();
  answer(turn);
}

function repeat(turn) {
  if (running || turn !== turns.at(-1)) return;
  turn.reset();
  prompt.focus();
  answer(turn);
}

/** Closes the connection: the server ends the request. */
function stop() {
  if (!running) return;
  running.abort();
  prompt.focus();
}

function grow() {
  prompt.style.setProperty("block-size", "auto");
  prompt.style.setProperty("block-size", `${prompt.scrollHeight + 2}px`);
}

async function nameModel() {
  const shown = document.getElementById("model");
  try {
    const response = await fetch("v1/models", { headers: headers(key()) });
    if (!response.ok) return;
    const [served] = (await response.json()).data;
    model = served.id;
    shown.textContent = `${model} · ${served.max_model_len} tokens`;
    document.title = `${model} – jaxinfer`;
    for (const example of document.querySelectorAll("#examples [data-needs]")) {
      example.hidden = served.capabilities?.[example.dataset.needs] === false;
    }
  } catch {
    shown.textContent = ""; // the state beside it says what is wrong
  }
}

document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches;
  if (!sends) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (settings.open && !wide.matches) settings.open = false;
  else stop();
});
document.addEventListener("pointerdown", (event) => {
  // Settings that lie over the conversation go when something else is touched.
  if (!wide.matches && !settings.contains(event.target)) settings.open = false;
});
touch.addEventListener("change", explain);
buttons.stop.addEventListener("click", stop);
buttons.clear.addEventListener("click", () => {
  turns.length = 0;
  for (const turn of talk.querySelectorAll(".turn")) turn.remove();
  arrange();
  prompt.focus();
});
control("key").addEventListener("change", nameModel);

/** How to send, as the keys of this device do it, and something to begin with. */
function explain() {
  document.getElementById("how").textContent = touch.matches
    ? "Tap Send to send; Enter starts a new line."
    : "Enter sends, Shift+Enter starts a new line, Escape stops an answer.";
  prompt.enterKeyHint = touch.matches ? "enter" : "send";
}

/** What the settings make of answers is said where one writes: the settings may be folded. */
function tellForms() {
  const words = formsInWords();
  document.getElementById("forms-words").textContent = words;
  document.getElementById("forms").hidden = !words;
}

for (const { shown, asks, values, needs } of EXAMPLES) {
  const button = make("button", "quiet", shown);
  button.type = "button";
  if (needs) button.dataset.needs = needs;
  button.addEventListener("click", () => {
    if (values) {
      resetForms();
      fill(values);
    }
    prompt.value = asks;
    send();
  });
  document.getElementById("examples").append(button);
}

settings.addEventListener("change", tellForms);
document.getElementById("reset-forms").addEventListener("click", () => {
  resetForms();
  prompt.focus();
});
settings.open = wide.matches;
explain();
tellForms(); // a browser may have kept what was typed before a reload
arrange();
watch(nameModel);
