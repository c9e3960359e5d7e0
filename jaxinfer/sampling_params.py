"""What a client may ask of sampling. Names and defaults are vLLM's where the thing is the same. No jax."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jaxinfer.errors import InvalidRequest as InvalidRequest  # where the engine's rooms and callers look for it

MAX_LOGPROBS = 20  # alternatives per position, unless RuntimeConfig.max_logprobs says otherwise
MAX_TOKEN_LIST = 1024  # entries in logit_bias + allowed_token_ids + bad_token_ids
MAX_BIAS = 100.0  # of logit_bias, either way
MAX_STOP_TOKEN_IDS = 128  # stop ids and end-of-sequence ids together, where min_tokens holds them back
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters in one stop string
MAX_N = 64
MAX_REPETITION_PENALTY = 100  # vLLM and transformers have no bound; beyond this one a token is as good as banned


_IDS_AT_ONCE = 1 << 16


def _number(name: str, value: Any, low: float, high: float, allowed: str, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidRequest(name, value, allowed)
    if value < low or value > high or (open_low and value == low):
        raise InvalidRequest(name, value, allowed)


def _integer(name: str, value: Any, low: int, high: int | None, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InvalidRequest(name, value, allowed)


_TRUNCATE = "it must be a positive integer, or -1 for as many as fit the context"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One request's sampling. Immutable and validated on construction; raises `InvalidRequest`.

    temperature 0 is greedy. `top_k` 0 or -1, `top_p` 1 and `min_p` 0 are off. Penalties follow vLLM: repetition over
    prompt and output, frequency and presence over output only. `seed` None lets the engine draw one, and so does
    -1, which becomes None. `logprobs` k returns the chosen token's log-probability and the k most likely (0: only the
    chosen one, -1: the whole vocabulary, where the engine's `max_logprobs` allows it); they are the log-softmax of the
    raw logits. `max_tokens` None means up to the context length. `truncate_prompt_tokens` k keeps the last k tokens of
    a prompt, -1 what fits the context.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        set_field(self, "stop", tuple(stop or ()))
        set_field(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        set_field(self, "bad_token_ids", tuple(self.bad_token_ids or ()))
        set_field(self, "logit_bias", dict(self.logit_bias or {}))
        if self.allowed_token_ids is not None:
            set_field(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        if self.seed == -1:
            set_field(self, "seed", None)
        self._check_numbers()
        self._check_lists()
        self._check_combinations()

    def prompt_limit(self, max_model_len: int) -> int | None:
        """Tokens that a prompt is cut to: -1 leaves room for one generated token, as in vLLM. None: it is not cut."""
        limit = self.truncate_prompt_tokens
        return max(1, max_model_len - 1) if limit == -1 else limit

    def _check_numbers(self) -> None:
        _integer("n", self.n, 1, MAX_N, f"it must be an integer from 1 to {MAX_N}")
        _number("temperature", self.temperature, 0.0, 100.0, "it must be a number from 0 to 100")
        _number("top_p", self.top_p, 0.0, 1.0, "it must be above 0 and at most 1", open_low=True)
        _integer("top_k", self.top_k, -1, None, "it must be a positive integer, or 0 or -1 for off")
        _number("min_p", self.min_p, 0.0, 1.0, "it must be from 0 to 1")
        most = MAX_REPETITION_PENALTY
        allowed = f"it must be above 0, at most {most}"
        _number("repetition_penalty", self.repetition_penalty, 0.0, most, allowed, open_low=True)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), -2.0, 2.0, "it must be from -2 to 2")
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1, "it must be a 64-bit integer")
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, None, "it must be a positive integer")
        _integer("min_tokens", self.min_tokens, 0, None, "it must be an integer of 0 or more")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), -1, None, "it must be an integer of 0 or more, or -1 for all")
        if self.truncate_prompt_tokens is not None:
            _integer("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, None, _TRUNCATE)
            if self.truncate_prompt_tokens == 0:
                raise InvalidRequest("truncate_prompt_tokens", 0, _TRUNCATE)

    def _check_lists(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest("stop", self.stop, f"at most {MAX_STOP_STRINGS} strings are allowed")
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
                raise InvalidRequest("stop", text, f"each must be a string of 1 to {MAX_STOP_LENGTH} characters")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS // 2:
            raise InvalidRequest(
                "stop_token_ids", self.stop_token_ids, f"at most {MAX_STOP_TOKEN_IDS // 2} are allowed"
            )
        total = len(self.logit_bias) + len(self.allowed_token_ids or ()) + len(self.bad_token_ids)
        if total > MAX_TOKEN_LIST:
            raise InvalidRequest(
                "logit_bias", total, f"with allowed_token_ids and bad_token_ids at most {MAX_TOKEN_LIST} entries"
            )
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, None, "keys must be token ids")
            _number("logit_bias", bias, -MAX_BIAS, MAX_BIAS, "values must be from -100 to 100")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids", (), "it must name at least one token, or be left out")
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids"):
            for token in getattr(self, name) or ():
                _integer(name, token, 0, None, "it must hold token ids")

    def _check_combinations(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens", self.min_tokens, f"it must not exceed max_tokens {self.max_tokens}")
        allowed, bad = self.allowed_token_ids, set(self.bad_token_ids)
        if allowed is not None and not set(allowed) - bad:
            raise InvalidRequest("bad_token_ids", self.bad_token_ids, "it bans every token of allowed_token_ids")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InvalidRequest` when a listed token id is outside the model's vocabulary."""
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids", "logit_bias"):
            for token in getattr(self, name) or ():
                if token >= vocab_size:
                    raise InvalidRequest(name, token, f"token ids are from 0 to {vocab_size - 1}")
        if len(set(self.bad_token_ids)) >= vocab_size:
            raise InvalidRequest("bad_token_ids", len(self.bad_token_ids), "it bans the whole vocabulary")

    def resolve_logprobs(self, vocab_size: int, max_logprobs: int) -> SamplingParams:
        """These parameters with -1, and what exceeds it, replaced by the whole vocabulary.

        Raises `InvalidRequest` when `logprobs` or `prompt_logprobs` asks for more than `max_logprobs` alternatives.
        """
        changes: dict[str, Any] = {}
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            wanted = vocab_size if count == -1 else count
            if wanted is not None and wanted > max_logprobs:
                allowed = f"it must be from 0 to {max_logprobs} (the engine's max_logprobs)"
                raise InvalidRequest(name, count, allowed)
            if wanted is not None and count != min(wanted, vocab_size):
                changes[name] = min(wanted, vocab_size)
        return replace(self, **changes) if changes else self

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def has_bias(self) -> bool:
        return bool(self.logit_bias or self.bad_token_ids or self.allowed_token_ids is not None)

    def with_changes(self, **changes: Any) -> SamplingParams:
        return replace(self, **changes)


def clamped_bias(bias: float) -> float:
    """As far as a bias can matter, which is what vLLM makes of it (SamplingParams.from_optional). NaN stays NaN."""
    return bias if math.isnan(bias) else min(MAX_BIAS, max(-MAX_BIAS, bias))


FIELD_NAMES = tuple(f.name for f in fields(SamplingParams))


def as_token_ids(name: str, values: Sequence[Any], vocab_size: int) -> tuple[int, ...]:
    """Checks a prompt given as token ids. Raises `InvalidRequest` naming the first bad one. In slices, so that no call
    of the interpreter is long: other threads run meanwhile."""
    parts: list[tuple[int, ...]] = []
    for start in range(0, len(values), _IDS_AT_ONCE):
        part = tuple(values[start : start + _IDS_AT_ONCE])
        if set(map(type, part)) != {int} or min(part) < 0 or max(part) >= vocab_size:
            for token in part:
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                    raise InvalidRequest(name, token, f"token ids are integers from 0 to {vocab_size - 1}")
        parts.append(part)
    return parts[0] if len(parts) == 1 else tuple(itertools.chain.from_iterable(parts))
