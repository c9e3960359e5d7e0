// The controls: what they say, as fields of a request.

const NUMBERS = [
  "temperature", "max_tokens", "top_p", "top_k", "min_p",
  "repetition_penalty", "presence_penalty", "frequency_penalty",
];
// Controls that change what an answer is, which is told where one writes.
const FORMS = ["response_format", "schema", "tools", "tool_choice", "reasoning_effort"];

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

/** The fields of a chat request. Empty controls are left out; a seed is a BigInt. Raises WrongSetting. */
export function requestFields(messages) {
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
  const seed = wholeNumber("seed");
  if (seed !== null) fields.seed = seed;
  const effort = control("reasoning_effort").value;
  if (effort) fields.reasoning_effort = effort;
  return { ...fields, ...answerFormat(), ...functions(messages.at(-1).role === "tool") };
}

function answerFormat() {
  const type = control("response_format").value;
  if (type === "json_schema") return { response_format: { type, json_schema: { name: "answer", schema: json("schema") } } };
  return type ? { response_format: { type } } : {};
}

/** Behind a call's result the model is free to answer, even if it had to call before. */
function functions(hasResult) {
  if (!control("tools").value.trim()) return {};
  const given = json("tools");
  const choice = control("tool_choice").value;
  const fields = { tools: Array.isArray(given) ? given : [given] };
  return choice && !(hasResult && choice === "required") ? { ...fields, tool_choice: choice } : fields;
}

function json(name) {
  const text = control(name).value.trim();
  const said = label(control(name));
  if (!text) throw new WrongSetting(name, `${said} is empty.`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new WrongSetting(name, `${said} is not JSON: ${error.message}.`);
  }
}

function number(name) {
  const input = control(name);
  if (input.validity.badInput) throw new WrongSetting(name, `${label(input)} is not a number.`);
  return input.value === "" ? null : Number(input.value);
}

/** Of any size: a seed has up to 64 bits, more than a number of JavaScript holds. */
function wholeNumber(name) {
  const text = control(name).value.trim();
  if (!text) return null;
  const said = label(control(name));
  if (!/^-?(0|[1-9][0-9]*)$/.test(text)) throw new WrongSetting(name, `${said} is "${text}"; it must be a whole number.`);
  return BigInt(text);
}

function label(input) {
  return input.closest("label").firstChild.textContent.trim();
}

// -- the form of answers ---------------------------------------------------------------------------------------------

/** Values by controls' names, as if typed. */
export function fill(values) {
  for (const [name, value] of Object.entries(values)) {
    const input = control(name);
    input.value = value;
    input.setSelectionRange?.(0, 0); // its beginning is shown
  }
  document.getElementById("settings").dispatchEvent(new Event("change"));
}

export function resetForms() {
  clearMarks();
  fill(Object.fromEntries(FORMS.map((name) => [name, ""])));
}

/** What the controls make of answers, in words, or "". */
export function formsInWords() {
  const words = [];
  const chosen = (name) => control(name).selectedOptions[0].textContent;
  if (control("response_format").value) words.push(`answer: ${chosen("response_format")}`);
  if (control("tools").value.trim()) {
    const must = control("tool_choice").value === "required";
    words.push(must ? "the model must call a tool" : "the model has tools");
  }
  if (control("reasoning_effort").value) words.push(`reasoning: ${chosen("reasoning_effort")}`);
  const text = words.join(" · ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// -- what is wrong ---------------------------------------------------------------------------------------------------

export function clearMarks() {
  for (const input of document.querySelectorAll("#settings [aria-invalid]")) input.removeAttribute("aria-invalid");
  for (const said of document.querySelectorAll("#settings .wrong")) said.remove();
}

/** Marks the control that an error is about, if it is one's. */
export function mark(error) {
  const input = error.status === 401 ? control("key") : error.param && controlOf(error.param);
  if (!input) return;
  input.setAttribute("aria-invalid", "true");
  // On a small screen the settings lie over the conversation and its words.
  const said = document.createElement("span");
  said.className = "wrong";
  said.textContent = error.message;
  input.closest("label").append(said);
  document.getElementById("settings").open = true;
  input.focus();
  said.scrollIntoView({ block: "nearest" });
}

/** A server names places within a field: tools[0].function.name, response_format.json_schema.schema#/type. */
function controlOf(param) {
  if (param.startsWith("response_format.json_schema")) return control("schema");
  return control(/^\w*/.exec(param)[0]);
}
