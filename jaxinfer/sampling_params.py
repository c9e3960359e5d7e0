"""What a client may ask of sampling. Names and defaults are vLLM's where the thing is the same. No jax."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.errors import InvalidRequest
from jaxinfer.sampling_fields import OFF, DeviceColumn, SamplingField, declare, declared_fields

MAX_LOGPROBS = 20  # alternatives per position, unless RuntimeConfig.max_logprobs says otherwise
MAX_TOKEN_LIST = 1024  # entries in logit_bias + allowed_token_ids + bad_token_ids
MAX_BIAS = 100.0  # of logit_bias, either way
MAX_STOP_TOKEN_IDS = 128  # stop ids and end-of-sequence ids together, where min_tokens holds them back
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024  # characters in one stop string
MAX_N = 64
MAX_REPETITION_PENALTY = 100  # vLLM and transformers have no bound; beyond this one a token is as good as banned


_IDS_AT_ONCE = 1 << 16


_PENALTY = {"low": -2, "high": 2, "special": {0: OFF}, "device": DeviceColumn("float32", 0)}
_COUNT = {"low": 0, "special": {-1: "all"}, "optional": True}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One request's sampling. Immutable and validated on construction; raises `InvalidRequest`.

    This is the one place where a parameter is declared; `jaxinfer.sampling_fields.SamplingField` says which facts, and
    `FIELDS` holds them by name. Penalties follow vLLM. Log-probabilities are the log-softmax of the raw logits, and
    those of the chosen token and of the k most likely ones are returned (0: only the chosen one's).
    """

    n: int = declare("integer", 1, "How many answers are generated for a prompt", low=1, high=MAX_N, http="text")
    temperature: float = declare(
        "number",
        1.0,
        "What the logits are divided by before a token is drawn",
        low=0,
        high=100,
        special={0: "greedy, the likeliest token every time"},
        generation_config="temperature",
        device=DeviceColumn("float32", 0),
    )
    top_p: float = declare(
        "number",
        1.0,
        "Draw from the likeliest tokens whose probabilities together reach this share",
        low=0,
        above=True,
        high=1,
        special={1: OFF},
        generation_config="top_p",
        device=DeviceColumn("float32", 1),
    )
    top_k: int = declare(
        "integer",
        0,
        "Draw from that many of the likeliest tokens",
        low=1,
        special={0: OFF, -1: OFF},
        generation_config="top_k",
        device=DeviceColumn("int32", 0),
    )
    min_p: float = declare(
        "number",
        0.0,
        "Draw from tokens that have at least this share of the likeliest token's probability",
        low=0,
        high=1,
        special={0: OFF},
        generation_config="min_p",
        device=DeviceColumn("float32", 0),
    )
    repetition_penalty: float = declare(
        "number",
        1.0,
        "Above 1 makes tokens that stand in prompt or output less likely, below 1 more likely",
        low=0,
        above=True,
        high=MAX_REPETITION_PENALTY,
        special={1: OFF},
        generation_config="repetition_penalty",
        device=DeviceColumn("float32", 1),
    )
    presence_penalty: float = declare(
        "number",
        0.0,
        "Taken once from the logit of every token that the output has already",
        generation_config="presence_penalty",
        **_PENALTY,
    )
    frequency_penalty: float = declare(
        "number",
        0.0,
        "Taken from the logit of a token for every time that the output has it already",
        generation_config="frequency_penalty",
        **_PENALTY,
    )
    seed: int | None = declare(
        "integer",
        None,
        "Equal seeds repeat the same text",
        low=-(2**63),
        high=2**64 - 1,
        special={-1: "another seed each time"},
        optional=True,
        without="drawn",
    )
    max_tokens: int | None = declare(
        "integer",
        16,
        "The most tokens that an answer may have",
        low=1,
        optional=True,
        without="the rest of the context",
        generation_config="max_new_tokens",
        http="own",
    )
    min_tokens: int = declare(
        "integer",
        0,
        "No end of text, stop strings included, before so many tokens",
        low=0,
        device=DeviceColumn("int32", 0),
    )
    stop: tuple[str, ...] = declare(
        "strings",
        (),
        f"Strings that end the text, at most {MAX_STOP_STRINGS} of 1 to {MAX_STOP_LENGTH} characters",
        needs_tokenizer=True,
    )
    stop_token_ids: tuple[int, ...] = declare("token_ids", (), "Tokens that end the text")
    include_stop_str_in_output: bool = declare(
        "boolean", False, "Keep the stop string, or the token, that ended the text", needs_tokenizer=True
    )
    ignore_eos: bool = declare("boolean", False, "Go on after the model's own end of text")
    logprobs: int | None = declare(
        "integer",
        None,
        "Log-probabilities of the answer's tokens, with so many alternatives each",
        without="none",
        http="own",
        device=DeviceColumn("int32", -1, "num_logprobs"),
        **_COUNT,
    )
    prompt_logprobs: int | None = declare(
        "integer",
        None,
        "Log-probabilities of the prompt's tokens, with so many alternatives each",
        without="none",
        http="text",
        **_COUNT,
    )
    logit_bias: Mapping[int, float] = declare(
        "logit_bias",
        {},
        f"Token id -> what is added to its logit, of which -{MAX_BIAS:g} to {MAX_BIAS:g} matter; at most "
        f"{MAX_TOKEN_LIST} entries",
    )
    allowed_token_ids: tuple[int, ...] | None = declare(
        "token_ids", None, "The only tokens that are generated", optional=True, without="all"
    )
    bad_token_ids: tuple[int, ...] = declare("token_ids", (), "Tokens that are never generated")
    skip_special_tokens: bool = declare("boolean", True, "Leave special tokens out of the text", needs_tokenizer=True)
    truncate_prompt_tokens: int | None = declare(
        "integer",
        None,
        "Keep only the last so many tokens of the prompt",
        low=1,
        special={-1: "as many as fit the context"},
        optional=True,
        without="all",
    )
    structured_outputs: StructuredOutputsParams | None = declare(
        "structured",
        None,
        "What the answer's text must be, such as JSON of a schema: see structured_output.md",
        optional=True,
        without="any text",
        needs_tokenizer=True,
    )
    thinking_token_budget: int | None = declare(
        "integer",
        None,
        "The most tokens that an answer may reason; then its reasoning is closed. For models that reason",
        low=0,
        special={0: "no reasoning"},
        optional=True,
        without="as many as it likes",
        needs_tokenizer=True,
        http="own",
    )

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        set_field(self, "stop", tuple(stop or ()))
        set_field(self, "logit_bias", dict(self.logit_bias or {}))
        for name in _TOKEN_IDS:
            ids = getattr(self, name)
            set_field(self, name, None if ids is None and FIELDS[name].optional else tuple(ids or ()))
        if self.seed == -1:
            set_field(self, "seed", None)
        if isinstance(self.structured_outputs, Mapping):
            set_field(self, "structured_outputs", StructuredOutputsParams.from_mapping(self.structured_outputs))
        elif not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise InvalidRequest("structured_outputs", self.structured_outputs, "it must be StructuredOutputsParams")
        for declared in _NUMERIC:
            value = getattr(self, declared.name)
            allowed = None if value is declared.default else declared.fault(value)
            if allowed is not None:
                raise InvalidRequest(declared.name, value, allowed)
        self._check_lists()
        self._check_combinations()

    def prompt_limit(self, max_model_len: int) -> int | None:
        """Tokens that a prompt is cut to: -1 leaves room for one generated token, as in vLLM. None: it is not cut."""
        limit = self.truncate_prompt_tokens
        return max(1, max_model_len - 1) if limit == -1 else limit

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
            if not _is_token_id(token):
                raise InvalidRequest("logit_bias", token, "keys must be token ids")
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -MAX_BIAS <= bias <= MAX_BIAS:
                allowed = f"values must be from -{MAX_BIAS:g} to {MAX_BIAS:g}"
                raise InvalidRequest("logit_bias", bias, allowed)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids", (), "it must name at least one token, or be left out")
        for name in _TOKEN_IDS:
            for token in getattr(self, name) or ():
                if not _is_token_id(token):
                    raise InvalidRequest(name, token, "it must hold token ids")

    def _check_combinations(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens", self.min_tokens, f"it must not exceed max_tokens {self.max_tokens}")
        allowed, bad = self.allowed_token_ids, set(self.bad_token_ids)
        if allowed is not None and not set(allowed) - bad:
            raise InvalidRequest("bad_token_ids", self.bad_token_ids, "it bans every token of allowed_token_ids")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InvalidRequest` when a listed token id is outside the model's vocabulary."""
        for name in (*_TOKEN_IDS, "logit_bias"):
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


def _is_token_id(value: Any) -> bool:
    """Whether it may be one of some vocabulary's."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def clamped_bias(bias: float) -> float:
    """As far as a bias can matter, which is what vLLM makes of it (SamplingParams.from_optional). NaN stays NaN."""
    return bias if math.isnan(bias) else min(MAX_BIAS, max(-MAX_BIAS, bias))


FIELDS: Mapping[str, SamplingField] = declared_fields(SamplingParams)
FIELD_NAMES = tuple(FIELDS)
_NUMERIC = tuple(declared for declared in FIELDS.values() if declared.kind in ("integer", "number"))
_TOKEN_IDS = tuple(name for name, declared in FIELDS.items() if declared.kind == "token_ids")

# What a row of a step needs beside its parameters.
_ROW_COLUMNS: Mapping[str, DeviceColumn] = {
    "seed_low": DeviceColumn("uint32", 0),
    "seed_high": DeviceColumn("uint32", 0),
    "sequence_index": DeviceColumn("int32", 0),
    "has_penalties": DeviceColumn("bool", 0),
    "has_bias": DeviceColumn("bool", 0),
}
_COLUMN_OF = {d.device.name or name: d for name, d in FIELDS.items() if d.device is not None}
DEVICE_COLUMNS: Mapping[str, DeviceColumn] = {
    **{column: declared.device for column, declared in _COLUMN_OF.items() if declared.device is not None},
    **_ROW_COLUMNS,
}
"""By the attributes of `SamplingParamsRows`: type and neutral value of each of its arrays."""


def device_values(params: SamplingParams, seed: int, index: int) -> dict[str, float]:
    """The values of one sequence for each of `DEVICE_COLUMNS`.

    seed: 64 bits, those that are drawn with. index: which of the request's n sequences it is.
    """
    values = {column: declared.on_device(getattr(params, declared.name)) for column, declared in _COLUMN_OF.items()}
    values["seed_low"] = seed & 0xFFFFFFFF
    values["seed_high"] = seed >> 32
    values["sequence_index"] = index
    values["has_penalties"] = params.has_penalties
    values["has_bias"] = params.has_bias
    return values


def as_token_ids(name: str, values: Sequence[Any], vocab_size: int) -> tuple[int, ...]:
    """Checks a prompt given as token ids. Raises `InvalidRequest` naming the first bad one. In slices, so that no call
    of the interpreter is long: other threads run meanwhile."""
    parts = list(_checked_slices(name, values, vocab_size))
    return parts[0] if len(parts) == 1 else tuple(itertools.chain.from_iterable(parts))


def check_token_ids(name: str, values: Sequence[Any], vocab_size: int) -> None:
    """`as_token_ids` for lists without a bound, of which no second one is made."""
    for _ in _checked_slices(name, values, vocab_size):
        pass


def _checked_slices(name: str, values: Sequence[Any], vocab_size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(values), _IDS_AT_ONCE):
        part = tuple(values[start : start + _IDS_AT_ONCE])
        if set(map(type, part)) != {int} or min(part) < 0 or max(part) >= vocab_size:
            for token in part:
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                    raise InvalidRequest(name, token, f"token ids are integers from 0 to {vocab_size - 1}")
        yield part
