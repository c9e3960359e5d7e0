// A request as a person would write it elsewhere: as a line for a shell, and in Python. What this page does any client can.

import { make } from "./tokens.js";

// What the openai package has no arguments for goes into its `extra_body`.
const OURS = ["top_k", "min_p", "repetition_penalty"];
const STREAMING = ["stream", "stream_options"];
const LINE = 88;

/** A request's body. Whole numbers that a number of JavaScript does not hold are BigInt at its top level. */
export function asJson(fields) {
  const parts = Object.entries(fields).map(
    ([name, value]) => `${JSON.stringify(name)}:${typeof value === "bigint" ? value : JSON.stringify(value)}`,
  );
  return `{${parts.join(",")}}`;
}

function address(path) {
  return new URL(path, document.baseURI).href;
}

/** The key is what $KEY holds. */
export function asCurl(fields, withKey) {
  const authorization = withKey ? ' -H "Authorization: Bearer $KEY"' : "";
  const quoted = `'${asJson(fields).replaceAll("'", "'\\''")}'`;
  return `curl -N ${address("v1/chat/completions")}${authorization} -H "Content-Type: application/json" -d ${quoted}`;
}

/** With the openai package. The answer comes whole: that is less to read. */
export function asPython(fields, withKey, model) {
  const named = ([name, value]) => `    ${name}=${literal(value, "    ", name.length + 2)},\n`;
  const taken = Object.entries(fields).filter(([name]) => !STREAMING.includes(name));
  const extra = taken.filter(([name]) => OURS.includes(name));
  const given = [["model", model], ...taken.filter(([name]) => !OURS.includes(name))];
  if (extra.length) given.push(["extra_body", Object.fromEntries(extra)]);
  const key = withKey ? 'os.environ["KEY"]' : '"none"';
  const shown = fields.tools ? "message" : "message.content";
  return [
    withKey ? "import os\n\n" : "",
    "from openai import OpenAI\n\n",
    `client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=${key})\n`,
    `answer = client.chat.completions.create(\n${given.map(named).join("")})\n`,
    `print(answer.choices[0].${shown})`,
  ].join("");
}

/** A value of JSON in Python, over several lines where one would be long. `used`: what stands before it on its line. */
function literal(value, indent, used) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "string") return JSON.stringify(value); // the escapes of JSON mean the same in Python
  if (typeof value !== "object") return String(value);
  const deeper = `${indent}    `;
  const parts = Array.isArray(value)
    ? value.map((each) => literal(each, deeper, 1))
    : Object.entries(value).map(([name, each]) => {
        const start = `${JSON.stringify(name)}: `;
        return start + literal(each, deeper, start.length + 1);
      });
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = `${open}${parts.join(", ")}${close}`;
  if (indent.length + used + line.length <= LINE && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => `${deeper}${part},\n`).join("")}${indent}${close}`;
}

export class CodeView {
  /** `buttons`, one for each language, and `element`, which shows the chosen one; choosing it again hides it. */
  constructor(fields, withKey, model) {
    this.element = make("div", "code");
    this.element.hidden = true;
    this.text = make("pre", "request");
    this.text.tabIndex = 0; // it can be scrolled, so it can be reached
    const copy = make("button", "quiet copy", "Copy");
    copy.type = "button";
    copy.addEventListener("click", () => this.#copy(copy));
    this.element.append(this.text, copy);
    this.buttons = [
      this.#button("curl", () => asCurl(fields, withKey)),
      this.#button("Python", () => asPython(fields, withKey, model)),
    ];
  }

  #button(name, spell) {
    const button = make("button", `quiet ${name.toLowerCase()}`, name);
    button.type = "button";
    button.title = `This request in ${name}`;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const shows = button.getAttribute("aria-pressed") !== "true";
      for (const each of this.buttons) each.setAttribute("aria-pressed", String(shows && each === button));
      this.element.hidden = !shows;
      this.text.textContent = spell();
      this.text.classList.toggle("long", name === "curl"); // one line, however long
    });
    return button;
  }

  async #copy(button) {
    let copied = false;
    try {
      // Browsers give a page the clipboard over https and on this machine alone; elsewhere the older way is left.
      if (navigator.clipboard) await navigator.clipboard.writeText(this.text.textContent);
      else getSelection().selectAllChildren(this.text);
      copied = Boolean(navigator.clipboard) || document.execCommand("copy");
    } catch {
      getSelection().selectAllChildren(this.text);
    }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }
}
