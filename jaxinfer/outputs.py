"""From the engine's tokens to what a client reads: text, stop strings, log-probabilities. The caller's side; no jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import NO_LOGITS, PromptScored, SequenceOutput, TokenLogprobs
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import (
    AnswerReading,
    AnswerStops,
    IncrementalDetokenizer,
    PromptEnd,
    StopStrings,
    Tokenizer,
    stop_automaton,
)


class CompletionOutput:
    """One sequence of a request. `stop_reason` is the stop string or token id that ended it, None for the
    tokenizer's own end token.

    `text` is put together when it is read: a long text is not copied for each token.
    """

    __slots__ = ("_pieces", "cumulative_logprob", "finish_reason", "index", "logprobs", "stop_reason", "token_ids")

    def __init__(self, index: int, *, logprobs: list[TokenLogprobs] | None = None) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.cumulative_logprob: float | None = None
        self.logprobs = logprobs
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @text.setter
    def text(self, text: str) -> None:
        self._pieces = [text]

    def add_text(self, text: str) -> None:
        """Goes on with the text."""
        if text:
            self._pieces.append(text)

    def __repr__(self) -> str:
        names = ("index", "text", "token_ids", "cumulative_logprob", "logprobs", "finish_reason", "stop_reason")
        return f"CompletionOutput({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


@dataclass(slots=True)
class RequestOutput:
    """A request's result. `prompt_logprobs[0]` is None (nothing precedes the first token), then one per position."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = False


PROMPT = -1  # `Delta.index` of what was scored of the prompt, which all sequences of a request share


@dataclass(slots=True)
class Delta:
    """What was added to one sequence since the last one, or to the scored prompt: all that a token is on its way out.

    A step makes one for each sequence that it advanced; those that a reader has not taken yet are merged (`add`).

    Args:
        index: Of the sequence, or PROMPT.
        texts: Together the text that was added; empty of the prompt.
        token_ids: The new tokens; none where an output filter withholds them, none of the prompt.
        logprobs: An entry for each token where the request asks for them; of the prompt for each scored position.
        finish_reason: How the sequence ended, None while it goes on.
        stop_reason: The stop string or token id that ended it.
        tokens: How many tokens there are, withheld ones included.
        ends: Of each of `token_ids`, where it ends in the sequence's text, in characters. Its text may still be held
            back (then it comes with a later delta), or never come, behind a stop string.
        start: Of the prompt, the position of the first of `logprobs`.
        stopped: Asks for the sequence to be aborted in the engine, because a stop string was found on this side.
    """

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    tokens: int = 0
    ends: list[int] = field(default_factory=list)
    start: int = 0
    stopped: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, later: Delta) -> None:
        """Takes in what came next of the same sequence."""
        self.texts += later.texts
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.tokens += later.tokens
        self.ends += later.ends
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


class _SequenceText:
    """Detokenizer and stop strings of one sequence."""

    __slots__ = ("detokenizer", "done", "min_tokens", "stops", "tokens")

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt: PromptEnd,
        params: SamplingParams,
        kept_tokens: Set[int],
        reading: AnswerReading | None,
    ) -> None:
        self.detokenizer = (
            IncrementalDetokenizer(
                tokenizer, prompt, skip_special_tokens=params.skip_special_tokens, kept_tokens=kept_tokens
            )
            if tokenizer is not None
            else None
        )
        self.stops = _stops(params, reading)
        self.min_tokens = params.min_tokens
        self.tokens = 0
        self.done = False

    @property
    def position(self) -> int:
        return 0 if self.detokenizer is None else self.detokenizer.position

    def take(self, token_ids: Sequence[int], *, last: bool, hidden: bool) -> tuple[str, list[int], str | None]:
        """Text that is safe to show, where each of the tokens ends in the sequence's text, and the stop string if one
        was completed: tokens behind it are not taken. last: nothing follows. hidden: the last token has no text."""
        if len(token_ids) < 2:
            text, match = self.push(len(token_ids), () if hidden else token_ids, last=last)
            return text, [self.position] * len(token_ids), match
        texts, ends, match = [], list[int](), None
        for i, token in enumerate(token_ids, 1):
            final = last and i == len(token_ids)
            text, match = self.push(1, () if hidden and final else (token,), last=final)
            texts.append(text)
            ends.append(self.position)
            if match is not None:
                break
        return "".join(texts), ends, match

    def push(self, new: int, token_ids: Sequence[int], *, last: bool) -> tuple[str, str | None]:
        """Text that is safe to show, and the stop string if one was completed. new: tokens, `token_ids` those of them
        that have text."""
        if self.detokenizer is None:
            return "", None
        text = self.detokenizer.push(token_ids)
        if self.stops is None:
            return text + (self.detokenizer.finish() if last else ""), None
        shown, match = self.stops.push(text)
        # What the detokenizer still holds (a run of byte tokens, such as a newline's) may complete a stop string too.
        settled = self.detokenizer.settled
        before, self.tokens = self.tokens, self.tokens + new
        if before < self.min_tokens <= self.tokens:
            self.stops.open(len(settled))
        if match is None and (last or (settled and self.stops.peek(settled) is not None)):
            held = self.detokenizer.finish()
            rest, match = self.stops.push(held[: len(settled)])
            shown += rest
            if match is None:
                # Bytes that never became a character are no match for a stop string that spells U+FFFD.
                shown += self.stops.finish(held[len(settled) :])
                match = self.stops.matched
        return shown, match


def prompt_end_of(
    tokenizer: Tokenizer | None, prompt_token_ids: Sequence[int], params: SamplingParams, kept_tokens: Set[int]
) -> PromptEnd:
    """What all sequences of a request must know of their prompt; it takes time in proportion to it."""
    if tokenizer is None:
        return PromptEnd()
    return PromptEnd.of(
        tokenizer, prompt_token_ids, skip_special_tokens=params.skip_special_tokens, kept_tokens=kept_tokens
    )


class RequestStream:
    """Follows one request from the caller's side and accumulates its `RequestOutput`.

    `tokenizer` may be None for token-only use; then text stays empty and stop strings are refused by the caller.
    `kept_tokens` are special tokens that stay in the text though others are skipped. `reading` says how the answers
    are read: where it knows reasoning, stop strings count from the answer's beginning (`AnswerStops`); with None all
    text is the answer. `prompt_end` is what `prompt_end_of` makes of the same arguments, where the caller has it.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        *,
        kept_tokens: Set[int] = frozenset(),
        reading: AnswerReading | None = None,
        prompt_end: PromptEnd | None = None,
    ) -> None:
        self.params = params
        self.pinned_tokens = 0  # of the prompt, from its beginning on
        self.result = RequestOutput(
            request_id,
            prompt,
            list(prompt_token_ids),
            [CompletionOutput(i, logprobs=None if params.logprobs is None else []) for i in range(params.n)],
            prompt_logprobs=None if params.prompt_logprobs is None else [None],
        )
        if prompt_end is None:
            prompt_end = prompt_end_of(tokenizer, prompt_token_ids, params, kept_tokens)
        self._texts = [_SequenceText(tokenizer, prompt_end, params, kept_tokens, reading) for _ in range(params.n)]
        self._open = params.n
        # As in vLLM 0.32 (v1/core/sched/utils.py, check_stop): the tokenizer's own end token is no reason to name,
        # unless it is ignored as such and a stop token all the same.
        self._own_end = None if tokenizer is None or params.ignore_eos else tokenizer.eos_token_id

    def push_prompt(self, scored: PromptScored) -> None:
        entries = self.result.prompt_logprobs
        if entries is None:
            return
        # A preempted request computes its prompt again: positions that are already there stay as they are.
        entries.extend(scored.entries[max(0, len(entries) - scored.start - 1) :])

    def push(self, output: SequenceOutput) -> Delta | None:
        """Takes one engine output; None when the sequence had already ended on this side (tokens after a stop)."""
        text_state = self._texts[output.index]
        if text_state.done:
            return None
        sequence = self.result.outputs[output.index]
        self.result.num_cached_tokens = max(self.result.num_cached_tokens, output.cached_tokens)
        self.pinned_tokens = max(self.pinned_tokens, output.pinned_tokens)
        new_ids = output.token_ids
        # End-of-sequence and stop tokens are part of token_ids; of the text only where the request says so, and then
        # like any other token: skip_special_tokens may leave them out. A grammar that is complete ends with text.
        hidden = output.stop_token is not None and not self.params.include_stop_str_in_output
        reason = output.finish_reason
        text, ends, match = text_state.take(output.token_ids, last=reason is not None, hidden=hidden)
        new_ids = output.token_ids[: len(ends)]
        stop_reason: int | str | None = None if output.stop_token == self._own_end else output.stop_token
        stopped = False
        if match is not None:
            stopped = reason is None
            reason, stop_reason = "stop", match
        sequence.token_ids.extend(new_ids)
        sequence.add_text(text)
        logprobs = () if output.logprobs is None else output.logprobs[: len(ends)]
        if sequence.logprobs is not None:
            sequence.logprobs.extend(logprobs)
            for entry in logprobs:
                sequence.cumulative_logprob = (sequence.cumulative_logprob or 0.0) + entry.logprob
        if reason is not None:
            sequence.finish_reason, sequence.stop_reason = reason, stop_reason
            text_state.done = True
            self._open -= 1
            self.result.finished = self._open == 0
        return Delta(
            output.index,
            [text] if text else [],
            list(new_ids),
            list(logprobs),
            reason,
            stop_reason,
            tokens=len(new_ids),
            ends=ends,
            stopped=stopped,
        )

    @property
    def finished(self) -> bool:
        return self._open == 0


def _stops(params: SamplingParams, reading: AnswerReading | None) -> AnswerStops | None:
    """The stop strings of one sequence."""
    if not params.stop:
        return None
    stops = StopStrings(stop_automaton(params.stop), include_stop_str_in_output=params.include_stop_str_in_output)
    return AnswerStops(stops, None if reading is None else reading.splitter(), opened=not params.min_tokens)


def fault_of(streams: Mapping[str, RequestStream], request_id: str, message: str) -> Exception:
    """What the engine says of one of a call's prompts."""
    name, prompt = f"prompts[{list(streams).index(request_id)}]", streams[request_id].result
    if message == NO_LOGITS:
        return RuntimeError(f"{name}: {message}")
    shown = f"{len(prompt.prompt_token_ids)} tokens" if prompt.prompt is None else prompt.prompt
    return InvalidRequest(name, shown, message)
