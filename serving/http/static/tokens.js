// The token view: every token of an answer, coloured by how likely it was, with its alternatives on demand.

const BOUNDS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.03]; // probabilities; a token below all of them gets the last colour
const PERCENT = new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 3 });

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export function level(logprob) {
  const probability = Math.exp(logprob);
  const found = BOUNDS.findIndex((bound) => probability >= bound);
  return found < 0 ? BOUNDS.length : found;
}

/** A token as text: spaces stay, line ends are shown, bytes that are no character by themselves are written out. */
export function spelled(entry) {
  if (!entry.bytes || entry.bytes.length === 0) return entry.token;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(entry.bytes));
  } catch {
    return entry.bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
}

function visible(text) {
  return text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");
}

function named(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

export class TokenView {
  /** Two elements: `list` of tokens and `detail` of the chosen one. One token is in the tab order; arrows move on. */
  constructor() {
    this.entries = [];
    this.element = make("div", "token-view");
    this.list = make("div", "tokens text");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", "Tokens of the answer; arrow keys move");
    this.list.setAttribute("aria-orientation", "horizontal");
    this.detail = make("div", "detail");
    this.detail.setAttribute("aria-live", "polite");
    this.detail.append(make("p", "hint", "Point at a token, or choose one with the arrow keys, to see what else was likely."));
    this.element.append(legend(), this.list, this.detail);
    this.chosen = null;
    this.list.addEventListener("pointerover", (event) => this.#show(event.target));
    this.list.addEventListener("click", (event) => this.#show(event.target));
    this.list.addEventListener("focusin", (event) => this.#show(event.target));
    this.list.addEventListener("keydown", (event) => this.#move(event));
  }

  add(entries) {
    for (const entry of entries) {
      const token = make("span", `token p${level(entry.logprob)}`, visible(spelled(entry)));
      token.setAttribute("role", "option");
      token.setAttribute("aria-selected", "false");
      token.tabIndex = this.entries.length ? -1 : 0;
      token.dataset.index = String(this.entries.length);
      this.entries.push(entry);
      this.list.append(token);
    }
  }

  #move(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const from = Number(event.target.dataset.index ?? 0);
    const to = Math.min(Math.max(from + step, 0), this.entries.length - 1);
    this.list.children[to].focus();
  }

  #show(token) {
    const entry = this.entries[Number(token.dataset.index ?? -1)];
    if (!entry || token === this.chosen) return;
    if (this.chosen) {
      this.chosen.setAttribute("aria-selected", "false");
      this.chosen.tabIndex = -1;
    }
    this.chosen = token;
    token.setAttribute("aria-selected", "true");
    token.tabIndex = 0;
    const title = make("p");
    title.append(
      "Token ", String(Number(token.dataset.index) + 1), " ", make("code", "", named(spelled(entry))),
      ` · probability ${PERCENT.format(Math.exp(entry.logprob))} · log ${entry.logprob.toFixed(3)}`,
    );
    this.detail.replaceChildren(title, ...alternatives(entry));
  }
}

function alternatives(entry) {
  if (!entry.top_logprobs.length) return [];
  const table = make("ol", "alternatives");
  const taken = (other) => other.token === entry.token && other.logprob === entry.logprob;
  const rows = entry.top_logprobs.some(taken) ? entry.top_logprobs : [...entry.top_logprobs, entry];
  for (const other of rows) {
    const row = make("li");
    const bar = make("span", "bar");
    const filled = make("span", `fill p${level(other.logprob)}`);
    filled.style.setProperty("inline-size", `${(100 * Math.exp(other.logprob)).toFixed(1)}%`);
    bar.append(filled);
    row.append(make("code", "", named(spelled(other))), bar, make("span", "share", PERCENT.format(Math.exp(other.logprob))));
    if (taken(other)) row.className = "taken";
    table.append(row);
  }
  return [table];
}

function legend() {
  const row = make("p", "legend hint", "likely ");
  for (let i = 0; i <= BOUNDS.length; i++) row.append(make("span", `swatch p${i}`));
  row.append(" unlikely");
  row.setAttribute("aria-hidden", "true");
  return row;
}
