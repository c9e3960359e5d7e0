"""The harness's generation arguments in our terms. No lm-eval needed.

A task's `generation_kwargs` and `--gen_kwargs` are a mapping with `until`, `max_gen_toks`, `do_sample`, `temperature`
and whatever the backend knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.sampling_params import FIELD_NAMES, SamplingParams
from jaxinfer.text import Tokenizer

# The names under which other backends know it; the first one given counts, as in the harness.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Fields of SamplingParams that are set here, or that ask for what the harness, which wants one text, does not take.
_NOT_PASSED = (
    *("temperature", "max_tokens", "stop", "stop_token_ids", "truncate_prompt_tokens"),
    *("n", "logprobs", "prompt_logprobs", "include_stop_str_in_output"),
    *("logit_bias", "allowed_token_ids", "bad_token_ids"),  # no argument on a command line spells these
)
_PASSED = tuple(name for name in FIELD_NAMES if name not in _NOT_PASSED)
_KNOWN = ("until", "do_sample", "temperature", "num_beams", *_LENGTHS, *_PASSED)


def sampling_params(arguments: Mapping[str, Any], tokenizer: Tokenizer, max_gen_toks: int) -> SamplingParams:
    """Sampling of one `generate_until` request. max_gen_toks: tokens where the request names no length.

    Greedy unless `do_sample` is true, or is left out beside a temperature above 0. A stop string that spells a special
    token is a stop token here, since special tokens are not part of the text. The model's own end-of-sequence tokens
    stop in any case, and an empty string in `until` is ignored, as the harness does.

    Raises InvalidRequest for an argument that is unknown or out of range.
    """
    for name in arguments:
        if name not in _KNOWN:
            raise InvalidRequest(name, arguments[name], f"generation arguments are {', '.join(_KNOWN)}")
    if arguments.get("num_beams", 1) != 1:
        raise InvalidRequest("num_beams", arguments["num_beams"], "beam search is not supported; it must be 1")
    lengths = [arguments[name] for name in _LENGTHS if arguments.get(name) is not None]
    given = {name: arguments[name] for name in _PASSED if arguments.get(name) is not None}
    strings, tokens = _stops(arguments.get("until"), tokenizer)
    return SamplingParams(
        temperature=_temperature(arguments),
        max_tokens=lengths[0] if lengths else max_gen_toks,
        stop=strings,
        stop_token_ids=tokens,
        **given,
    )


def _temperature(arguments: Mapping[str, Any]) -> float:
    temperature, sampled = arguments.get("temperature"), arguments.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise InvalidRequest("do_sample", sampled, "it must be true or false")
    if sampled is False:
        return 0.0  # some tasks leave a temperature beside it
    default = 1.0 if sampled else 0.0
    return default if temperature is None else temperature


def _stops(until: str | Sequence[str] | None, tokenizer: Tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Stop strings, and the ids of those that are special tokens."""
    strings: list[str] = []
    tokens: list[int] = []
    for text in (until,) if isinstance(until, str) else until or ():
        if not isinstance(text, str):
            raise InvalidRequest("until", until, "it must be a string or a list of strings")
        ids = tokenizer.encode(text, add_special_tokens=False) if text else []
        if len(ids) == 1 and tokenizer.is_special(ids[0]):
            tokens.append(ids[0])
        elif text:
            strings.append(text)
    return tuple(strings), tuple(tokens)
