"""From the engine's tokens to what a client reads: text, stop strings, log-probabilities. The caller's side; no jax."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxinfer.messages import PromptScored, SequenceOutput, TokenLogprobs
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import IncrementalDetokenizer, StopStrings, Tokenizer


@dataclass(slots=True)
class CompletionOutput:
    """One sequence of a request. `stop_reason` is the stop string or stop token id that ended it, None for EOS."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


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


class Delta(NamedTuple):
    """What one step added to one sequence. `stopped` asks the caller to abort it in the engine (stop string found).

    end: where the tokens so far end in the sequence's text, in characters. Their text may still be held back (then it
    comes with a later delta), or never come, behind a stop string.
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: str | None
    stop_reason: int | str | None
    stopped: bool
    end: int = 0


class _SequenceText:
    """Detokenizer and stop strings of one sequence."""

    __slots__ = ("detokenizer", "done", "stops")

    def __init__(
        self, tokenizer: Tokenizer | None, prompt_ids: Sequence[int], params: SamplingParams, kept_tokens: Set[int]
    ) -> None:
        self.detokenizer = (
            IncrementalDetokenizer(
                tokenizer, prompt_ids, skip_special_tokens=params.skip_special_tokens, kept_tokens=kept_tokens
            )
            if tokenizer is not None
            else None
        )
        self.stops = (
            StopStrings(params.stop, include_stop_str_in_output=params.include_stop_str_in_output)
            if params.stop
            else None
        )
        self.done = False

    @property
    def position(self) -> int:
        return 0 if self.detokenizer is None else self.detokenizer.position

    def push(self, token_ids: Sequence[int], *, last: bool) -> tuple[str, str | None]:
        """Text that is safe to show, and the stop string if one was completed."""
        if self.detokenizer is None:
            return "", None
        text = self.detokenizer.push(token_ids)
        if self.stops is None:
            return text + (self.detokenizer.finish() if last else ""), None
        shown, match = self.stops.push(text)
        # What the detokenizer still holds (a run of byte tokens, such as a newline's) may complete a stop string too.
        held = self.detokenizer.held
        if match is None and (last or (held and self.stops.peek(held) is not None)):
            rest, match = self.stops.push(self.detokenizer.finish())
            shown += rest
            if match is None:
                shown += self.stops.finish()
                match = self.stops.matched
        return shown, match


class RequestStream:
    """Follows one request from the caller's side and accumulates its `RequestOutput`.

    `tokenizer` may be None for token-only use; then text stays empty and stop strings are refused by the caller.
    `kept_tokens` are special tokens that stay in the text though others are skipped.
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
    ) -> None:
        self.params = params
        self.result = RequestOutput(
            request_id,
            prompt,
            list(prompt_token_ids),
            [
                CompletionOutput(i, logprobs=None if params.logprobs is None else [], cumulative_logprob=None)
                for i in range(params.n)
            ],
            prompt_logprobs=None if params.prompt_logprobs is None else [None],
        )
        self._texts = [_SequenceText(tokenizer, prompt_token_ids, params, kept_tokens) for _ in range(params.n)]
        self._open = params.n

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
        new_ids = (output.token_id,) if output.token_id >= 0 else ()
        # End-of-sequence and stop tokens are part of token_ids but never of the text.
        visible = () if output.finish_reason == "stop" else new_ids
        text, match = text_state.push(visible, last=output.finish_reason is not None)
        reason = output.finish_reason
        stop_reason: int | str | None = output.stop_token
        stopped = False
        if match is not None:
            stopped = reason is None
            reason, stop_reason = "stop", match
        sequence.token_ids.extend(new_ids)
        sequence.text += text
        logprobs = () if output.logprobs is None else (output.logprobs,)
        if sequence.logprobs is not None:
            sequence.logprobs.extend(logprobs)
            for entry in logprobs:
                sequence.cumulative_logprob = (sequence.cumulative_logprob or 0.0) + entry.logprob
        if reason is not None:
            sequence.finish_reason, sequence.stop_reason = reason, stop_reason
            text_state.done = True
            self._open -= 1
            self.result.finished = self._open == 0
        return Delta(output.index, text, new_ids, logprobs, reason, stop_reason, stopped, text_state.position)

    @property
    def finished(self) -> bool:
        return self._open == 0
