// A message and its answer, as they are shown and as the model is told of them later.

import { CodeView } from "./code.js";
import { TokenView, make } from "./tokens.js";

export class Turn {
  /** asks: the messages that ask, one of the user or the results of tools. acts: what its buttons do, `again(turn)` and
   *  `results(messages)`. state: asking, done, stopped or failed; a failed turn is no part of the conversation. */
  constructor(asks, acts) {
    this.asks = asks;
    this.acts = acts;
    this.element = make("article", "turn");
    const asked = make("div", "said you");
    asked.append(make("h2", "", asks[0].role === "tool" ? "Result of the tool" : "You"));
    for (const message of asks) asked.append(make("p", "text", message.content));
    this.said = make("div", "said model");
    this.element.append(asked, this.said);
    this.reset();
  }

  reset() {
    this.state = "asking";
    this.answer = "";
    this.thoughts = "";
    this.calls = [];
    this.whole = false; // whether the calls are
    this.tokens = null;
    this.code = null;
    this.text = make("p", "text");
    this.thinking = null;
    this.tools = make("p", "tools");
    this.said.replaceChildren(make("h2", "", "Model"), this.text, this.tools);
    this.said.setAttribute("aria-busy", "true");
    this.element.classList.remove("failed");
  }

  get isPart() {
    return this.state !== "failed" && Boolean(this.answer || (this.whole && this.calls.length));
  }

  /** The turn for the model. It sees what it thought before a call: the call is the middle of one answer. */
  messages() {
    const said = { role: "assistant", content: this.answer };
    if (this.whole && this.calls.length) {
      said.tool_calls = this.calls.map(({ id, name, text }) => (
        { id, type: "function", function: { name, arguments: text.textContent } }
      ));
      if (this.thoughts) said.reasoning = this.thoughts;
    }
    return [...this.asks, said];
  }

  /** What a request is for whoever wants to send it elsewhere. */
  asked(fields, withKey, model) {
    this.code = new CodeView(fields, withKey, model);
  }

  content(text) {
    this.#fold();
    this.answer += text;
    this.text.append(text);
  }

  /** Open while it is written, folded once the answer comes, unless somebody has folded or opened it. */
  reasoning(text) {
    if (!this.thinking) {
      const [box, summary] = part("thinking", "Reasoning");
      summary.addEventListener("click", () => { this.thinking.touched = true; });
      this.thinking = { box, text: make("p", "text"), touched: false };
      box.append(this.thinking.text);
      this.text.before(box);
    }
    this.thoughts += text;
    this.thinking.text.append(text);
  }

  #fold() {
    if (this.thinking && !this.thinking.touched) this.thinking.box.open = false;
  }

  /** A piece of a tool call, as a chat completion's event has it. */
  call({ index, id, function: { name, arguments: text } }) {
    if (!this.calls[index]) {
      const [box, summary] = part("call", "Tool call ");
      summary.append(make("code", "", name));
      this.calls[index] = { id, name, box, text: make("pre"), result: null };
      box.append(this.calls[index].text);
      this.tools.before(box);
      this.#fold();
    }
    this.calls[index].text.append(text ?? "");
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
    const notes = [note, this.isPart ? "" : "not part of the conversation"].filter(Boolean);
    this.tools.replaceChildren(make("span", "note", notes.join(" · ")));
    if (this.tokens) this.tools.append(this.#toggle());
    if (this.code) {
      this.tools.append(...this.code.buttons);
      this.tools.after(this.code.element);
    }
    const again = button("quiet again latest", state === "failed" ? "Try again" : "Again");
    again.addEventListener("click", () => this.acts.again(this));
    this.tools.append(again);
    if (this.isPart && this.whole && this.calls.length) this.#askForResults();
  }

  /** A box under each call for what its tool gave, since no tool is run here. */
  #askForResults() {
    for (const call of this.calls) {
      const asked = make("label", "result latest", "What the tool gave back ");
      call.result = make("textarea");
      call.result.rows = 1;
      asked.append(call.result);
      call.box.append(asked);
    }
    const sends = button("send-results latest", this.calls.length > 1 ? "Send results" : "Send result");
    sends.addEventListener("click", () => {
      this.acts.results(this.calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result.value })));
    });
    this.calls.at(-1).box.after(sends);
  }

  #toggle() {
    const toggle = button("quiet", "Tokens");
    const set = (tokens) => {
      this.text.hidden = tokens;
      this.tokens.element.hidden = !tokens;
      toggle.setAttribute("aria-pressed", String(tokens));
    };
    set(this.tokens.element.hidden === false);
    toggle.addEventListener("click", () => set(toggle.getAttribute("aria-pressed") !== "true"));
    return toggle;
  }
}

function button(className, text) {
  const made = make("button", className, text);
  made.type = "button";
  return made;
}

/** An open part of an answer that can be folded, and its title. */
function part(className, title) {
  const box = make("details", `part ${className}`);
  const summary = make("summary", "", title);
  box.open = true;
  box.append(summary);
  return [box, summary];
}
