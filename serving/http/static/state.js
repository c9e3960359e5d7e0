// What the server says of itself: /ready for its state, /metrics for its numbers (with whichever prefix they have).

import { headers } from "./stream.js";
import { key } from "./settings.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const WORDS = {
  ready: "ready",
  warming: "warming up",
  loading: "loading",
  draining: "draining",
  stuck: "stuck",
  failed: "failed",
  unreachable: "unreachable",
  locked: "locked",
};
const SAMPLES = 60;
const history = new Array(SAMPLES).fill(0);
let before = null; // the last tokens and their time
let refused = null; // the key that /metrics did not want: it is not asked again with the same one

const at = (id) => document.getElementById(id);

/** Looks every second, while somebody can see it. `becameReady` is called whenever the server took no requests and does. */
export function watch(becameReady) {
  const takesRequests = (state) => state === "ready" || state === "warming";
  let last = "";
  const look = async () => {
    if (!document.hidden) {
      const state = await readState();
      if (takesRequests(state) && !takesRequests(last)) becameReady();
      last = state;
      await readNumbers();
    }
    setTimeout(look, EVERY_MS);
  };
  look();
}

function ask(path) {
  return fetch(path, { headers: headers(key()), signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
}

async function readState() {
  let state = "unreachable";
  try {
    const response = await ask("ready");
    state = response.status === 401 || response.status === 403 ? "locked" : (await response.json()).status;
  } catch {
    state = "unreachable"; // shown as such: no answer, none in time, or none of ours
  }
  const shown = at("status");
  shown.textContent = WORDS[state] ?? state ?? WORDS.unreachable;
  shown.dataset.state = state;
  return state;
}

async function readNumbers() {
  let text = "";
  const used = key();
  if (used === refused) return;
  try {
    const response = await ask("metrics");
    if (response.ok) text = await response.text();
    refused = response.status === 401 || response.status === 403 ? used : null;
  } catch {
    text = ""; // the numbers become dashes
  }
  show(parse(text), performance.now());
}

/** Name without prefix -> sum over the lines of that name. Exposition format 0.0.4, no time stamps. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const parts = /^(?:[a-z]+:)?(\w+)(?:\{.*\})? (\S+)$/.exec(line);
    if (parts && !found.has(parts[1])) found.set(parts[1], Number(parts[2]));
  }
  return found;
}

function show(numbers, now) {
  const write = (id, name, form = String) => {
    at(id).textContent = numbers.has(name) ? form(numbers.get(name)) : "–";
  };
  write("running", "num_requests_running");
  write("waiting", "num_requests_waiting");
  write("kv", "kv_cache_usage_perc", (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`);
  at("kv-bar").style.setProperty("inline-size", `${100 * (numbers.get("kv_cache_usage_perc") ?? 0)}%`);
  const tokens = numbers.get("generation_tokens_total");
  if (tokens === undefined || before === null || tokens < before.tokens) {
    at("rate").textContent = tokens === undefined ? "–" : "0";
  } else {
    const rate = (1000 * (tokens - before.tokens)) / (now - before.now);
    at("rate").textContent = rounded(rate);
    history.push(rate);
    history.shift();
    draw();
  }
  before = tokens === undefined ? null : { tokens, now };
}

/** One step for each second, with the highest of them in words: a curve alone has no scale. */
function draw() {
  const top = Math.max(...history);
  const steps = history.map((rate, i) => `H${i}V${(20 - (top ? (20 * rate) / top : 0)).toFixed(2)}H${i + 1}`);
  document.querySelector("#history path").setAttribute("d", `M0,20${steps.join("")}V20Z`);
  at("peak").textContent = top ? `, up to ${rounded(top)}` : "";
}

function rounded(rate) {
  return rate >= 10 ? rate.toFixed(0) : rate.toFixed(1).replace(/\.0$/, "");
}
