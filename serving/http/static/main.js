// The conversation: what was asked, what came, and what becomes of both.

import { AnswerError, asCurl, chat, headers } from "./stream.js";
import { WrongSetting, clearMarks, control, key, mark, requestBody } from "./settings.js";
import { TokenView, make } from "./tokens.js";
import { watch } from "./state.js";

const talk = document.getElementById("talk");
const prompt = document.getElementById("prompt");
const buttons = Object.fromEntries(["send", "stop", "clear"].map((id) => [id, document.getElementById(id)]));
const empty = document.getElementById("empty");
const turns = [];
const touch = matchMedia("(pointer: coarse)"); // where Enter is the only way to a new line, and the button is near
const wide = matchMedia("(min-width: 60rem)"); // as in page.css: the settings stand beside the conversation
const settings = document.getElementById("settings");
const EXAMPLES = ["What is 347 + 586?", "Tell me a short story."];
let running = null; // the AbortController of the answer under way

class Turn {
  /** A message and its answer. state: asking, done, stopped or failed; a failed turn is no part of the conversation. */
  constructor(question) {
    this.question = question;
    this.element = make("article", "turn");
    const asked = make("div", "said you");
    asked.append(make("h2", "", "You"), make("p", "text", question));
    this.said = make("div", "said model");
    this.element.append(asked, this.said);
    this.reset();
  }

  reset() {
    this.state = "asking";
    this.answer = "";
    this.tokens = null;
    this.asked = null;
    this.text = make("p", "text");
    this.thinking = null;
    this.tools = make("p", "tools");
    this.said.replaceChildren(make("h2", "", "Model"), this.text, this.tools);
    this.said.setAttribute("aria-busy", "true");
    this.element.classList.remove("failed");
  }

  content(text) {
    this.answer += text;
    this.text.append(text);
  }

  reasoning(text) {
    if (!this.thinking) {
      const box = make("details", "thinking");
      this.thinking = make("p", "text");
      box.append(make("summary", "", "Reasoning"), this.thinking);
      this.text.before(box);
    }
    this.thinking.append(text);
  }

  scored(entries) {
    if (!entries.length) return;
    if (!this.tokens) {
      this.tokens = new TokenView();
      this.text.after(this.tokens.element);
      this.text.hidden = true;
    }
    this.tokens.add(entries);
  }

  /** The end: a note, an error in words, and what can be done now. */
  end(state, note, error) {
    this.state = state;
    this.said.setAttribute("aria-busy", "false");
    this.element.classList.toggle("failed", state === "failed");
    if (error) {
      const shown = make("p", "error", error);
      shown.setAttribute("role", "alert");
      this.tools.before(shown);
    }
    this.tools.replaceChildren();
    if (note) this.tools.append(make("span", "note", note));
    if (this.tokens) this.tools.append(this.#toggle());
    if (this.asked) this.#showRequest();
    const again = make("button", "quiet again", state === "failed" ? "Try again" : "Again");
    again.type = "button";
    again.addEventListener("click", () => repeat(this));
    this.tools.append(again);
  }

  /** The same question for a shell, behind a button: what this page does any client can. */
  #showRequest() {
    const shown = make("pre", "request", asCurl(this.asked, key() !== ""));
    shown.hidden = true;
    const button = make("button", "quiet curl", "curl");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.title = "This request as a line for a shell";
    button.addEventListener("click", () => {
      shown.hidden = !shown.hidden;
      button.setAttribute("aria-pressed", String(!shown.hidden));
    });
    this.tools.append(button);
    this.tools.after(shown);
  }

  #toggle() {
    const button = make("button", "quiet", "Tokens");
    button.type = "button";
    const set = (tokens) => {
      this.text.hidden = tokens;
      this.tokens.element.hidden = !tokens;
      button.setAttribute("aria-pressed", String(tokens));
    };
    set(this.tokens.element.hidden === false);
    button.addEventListener("click", () => set(button.getAttribute("aria-pressed") !== "true"));
    return button;
  }
}

/** What the model is told: the turns before `last` that have an answer, and its question. */
function messages(last) {
  const told = [];
  for (const turn of turns.slice(0, turns.indexOf(last))) {
    if (turn.state !== "failed" && turn.answer) {
      told.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.answer });
    }
  }
  return [...told, { role: "user", content: last.question }];
}

async function answer(turn) {
  clearMarks();
  const stopping = new AbortController();
  running = stopping;
  arrange();
  const began = performance.now();
  const seen = { first: 0, finish: null, usage: null };
  try {
    turn.asked = requestBody(messages(turn));
    for await (const event of chat(turn.asked, key(), stopping.signal)) take(turn, event, seen);
    const full = seen.finish === "length" ? "max tokens reached" : "";
    turn.end("done", [full, timing(seen, began)].filter(Boolean).join(" · "));
  } catch (error) {
    if (error.name === "AbortError") {
      turn.end(turn.answer ? "stopped" : "failed", "stopped");
    } else if (error instanceof AnswerError || error instanceof WrongSetting) {
      turn.end("failed", "not part of the conversation", error.message);
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
  for (const choice of event.choices) {
    const { content, reasoning_content: reasoning } = choice.delta;
    if ((content || reasoning) && !seen.first) seen.first = performance.now();
    if (reasoning) turn.reasoning(reasoning);
    if (content) turn.content(content);
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
  // The last answer alone can be asked for again: those before it have been built upon.
  for (const again of talk.querySelectorAll(".again")) {
    again.hidden = running !== null || again.closest(".turn") !== turns.at(-1)?.element;
  }
}

function send() {
  const question = prompt.value.trim();
  if (!question || running) return;
  const turn = new Turn(question);
  turns.push(turn);
  if (!wide.matches) settings.open = false; // what is answered is to be seen
  talk.append(turn.element);
  prompt.value = "";
  grow();
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
    const [model] = (await response.json()).data;
    shown.textContent = `${model.id} · ${model.max_model_len} tokens`;
    document.title = `${model.id} – jaxinfer`;
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

for (const example of EXAMPLES) {
  const button = make("button", "quiet", example);
  button.type = "button";
  button.addEventListener("click", () => {
    prompt.value = example;
    send();
  });
  document.getElementById("examples").append(button);
}

settings.open = wide.matches;
explain();
arrange();
watch(nameModel);
