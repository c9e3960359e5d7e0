// Asking the server: requests, server-sent events, and errors in words. No DOM in this file but the page's own address.

/** What the server, or the way to it, said instead of an answer. */
export class AnswerError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** The events of a chat completion, as they come; before them, where fields had no effect, one that names them.
 *  Raises AnswerError; an abort of `signal` is an AbortError. */
export async function* chat(body, key, signal) {
  let response;
  try {
    response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers(key) },
      body,
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AnswerError("The server cannot be reached. It may have stopped, or the network is down.");
  }
  if (!response.ok) throw await refusal(response);
  const ignored = response.headers.get("x-jaxinfer-ignored");
  if (ignored) yield { choices: [], ignored };
  let ended = false;
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const event = JSON.parse(data);
    if (event.error) throw new AnswerError(sentence(event.error.message), event.error);
    yield event;
  }
  if (!ended) throw new AnswerError("The connection broke off in the middle of the answer.");
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    error = { message: `the answer's status is ${response.status} ${response.statusText}, without a reason` };
  }
  const wait = response.headers.get("retry-after");
  const words = [sentence(error.message ?? `status ${response.status}`)];
  if (response.status === 401) words.push("Enter an API key under Settings.");
  if (wait && response.status !== 401) words.push(`Try again in ${wait} s.`);
  return new AnswerError(words.join(" "), { status: response.status, param: error.param });
}

function sentence(text) {
  const trimmed = String(text).trim();
  const ended = /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
  return ended.charAt(0).toUpperCase() + ended.slice(1);
}

/** The data of server-sent events. A broken connection ends it: the caller misses [DONE]. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal.aborted) throw new DOMException("stopped", "AbortError");
      return;
    }
    if (piece.done) return;
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
    }
  }
}
