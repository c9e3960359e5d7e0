"""`cache_control` of Anthropic's requests: up to which blocks the prompt is pinned, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import Submit
from serving.cache_marks import MARK, MAX_MARKS
from serving.http import ignored
from serving.http.chat_input import says_nothing

DEFAULT_TTL = "5m"
TTLS: Mapping[str, float] = {DEFAULT_TTL: 300.0, "1h": 3600.0}  # seconds; Anthropic's
_KEYS = ("type", "ttl")
_SHORT, _LONG = "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"


def created_tokens(submit: Submit, cached: int, pinned: int) -> dict[str, int]:
    """What of a prompt its request has pinned that was not in the cache before, as Anthropic's usage has it: by how
    long it stays. cached, pinned: tokens of the prompt from its beginning on."""
    found = {_SHORT: 0, _LONG: 0}
    ends = sorted((*submit.pins, *([(pinned, submit.pin_answer)] if submit.pin_answer else ())))
    begin = cached
    for i, (tokens, _) in enumerate(ends):
        end = min(tokens, pinned)
        if end > begin:
            longest = max(seconds for _, seconds in ends[i:])
            found[_LONG if longest > TTLS[DEFAULT_TTL] else _SHORT] += end - begin
            begin = end
    return found


class CacheControl:
    """Reads one request's marks. honoured: prompts are pinned; else marks are checked and named as ignored."""

    def __init__(self, *, honoured: bool) -> None:
        self._honoured = honoured
        self._found = 0

    @property
    def any(self) -> bool:
        """Whether there is a mark that counts."""
        return self._honoured and self._found > 0

    def of(self, name: str, block: Mapping[str, Any]) -> dict[str, float]:
        """The mark of a block, of a tool or of the request, as conversations have it (see cache_marks.py). name: of
        what has it. Raises InvalidRequest."""
        given, at = block.get(MARK), f"{name}.{MARK}" if name else MARK
        if says_nothing(given):
            return {}
        if not isinstance(given, dict):
            raise InvalidRequest(at, given, 'it must be an object like {"type": "ephemeral"}')
        if given.get("type") != "ephemeral":
            raise InvalidRequest(f"{at}.type", given.get("type"), "it must be ephemeral")
        ttl = DEFAULT_TTL if says_nothing(given.get("ttl")) else given["ttl"]
        if not isinstance(ttl, str) or ttl not in TTLS:
            raise InvalidRequest(f"{at}.ttl", ttl, f"it must be {' or '.join(TTLS)}")
        for key, value in given.items():
            if key not in _KEYS and not says_nothing(value):
                ignored.unknown(f"{at}.{key}", value, _KEYS, f"{MARK} has {' and '.join(_KEYS)}")
        self._found += 1
        if self._found > MAX_MARKS:
            raise InvalidRequest(at, f"mark {self._found}", f"at most {MAX_MARKS} of a request are allowed")
        if not self._honoured:
            ignored.passed_over(at, MARK)
            return {}
        return {MARK: TTLS[ttl]}
