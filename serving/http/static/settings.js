// The controls: what they say, as fields of a request.

const NUMBERS = [
  "temperature", "max_tokens", "top_p", "top_k", "min_p",
  "repetition_penalty", "presence_penalty", "frequency_penalty",
];

/** A control that does not hold what it must. */
export class WrongSetting extends Error {
  constructor(name, message) {
    super(message);
    this.param = name;
  }
}

export function control(name) {
  return document.querySelector(`#settings [name="${CSS.escape(name)}"]`);
}

export function key() {
  return control("key").value.trim();
}

/** The body of a chat request as JSON. Empty controls are left out. Raises WrongSetting. */
export function requestBody(messages) {
  const system = control("system").value.trim();
  const fields = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of NUMBERS) {
    const value = number(name);
    if (value !== null) fields[name] = value;
  }
  const stop = control("stop").value.split("\n").filter((line) => line !== "");
  if (stop.length) fields.stop = stop;
  if (control("logprobs").checked) {
    fields.logprobs = true;
    fields.top_logprobs = number("top_logprobs") ?? 0;
  }
  return withSeed(JSON.stringify(fields));
}

function number(name) {
  const input = control(name);
  if (input.validity.badInput) throw new WrongSetting(name, `${label(input)} is not a number.`);
  return input.value === "" ? null : Number(input.value);
}

/** A seed has up to 64 bits, more than a number of JavaScript holds: its digits go into the text as they are. */
function withSeed(json) {
  const seed = control("seed").value.trim();
  if (!seed) return json;
  if (!/^-?(0|[1-9][0-9]*)$/.test(seed)) throw new WrongSetting("seed", `Seed is "${seed}"; it must be a whole number.`);
  return `${json.slice(0, -1)},"seed":${seed}}`;
}

function label(input) {
  return input.closest("label").firstChild.textContent.trim();
}

export function clearMarks() {
  for (const input of document.querySelectorAll("#settings [aria-invalid]")) input.removeAttribute("aria-invalid");
  for (const said of document.querySelectorAll("#settings .wrong")) said.remove();
}

/** Marks the control that an error is about, if it is one's. */
export function mark(error) {
  const input = error.status === 401 ? control("key") : error.param && control(error.param);
  if (!input) return;
  input.setAttribute("aria-invalid", "true");
  // On a small screen the settings lie over the conversation and its words.
  const said = document.createElement("span");
  said.className = "wrong";
  said.textContent = error.message;
  input.closest("label").append(said);
  document.getElementById("settings").open = true;
  input.focus();
}
