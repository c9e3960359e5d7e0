"""How a sampling parameter is declared: its check, its values on the device, what every server and command reads of it
and what the documents say derive from a `SamplingField`. The fields themselves are `SamplingParams`'. No jax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["integer", "number", "boolean", "strings", "token_ids", "logit_bias", "structured"]
Http = Literal["every", "text", "own"]

OFF = "off"  # the meaning of a value with which a parameter has no effect
_METADATA = "sampling"
_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DeviceColumn:
    """What a step's rows hold of a parameter on the device: an array with one value for each row."""

    dtype: str
    """numpy's name of the array's type."""
    neutral: float
    """The value of a row that does not ask for anything, such as a padding row."""
    name: str = ""
    """The attribute of `SamplingParamsRows`; "" where it has the parameter's own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingField:
    """One parameter of `SamplingParams`."""

    name: str = ""
    kind: Kind
    default: Any
    """Of `SamplingParams`; () and {} for what is a list or a mapping."""
    description: str
    """One sentence, without a full stop and without what `special` says."""
    low: float | None = None
    high: float | None = None
    above: bool = False
    """Whether `low` itself is refused."""
    special: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Values with a meaning of their own -> that meaning. They may lie outside of `low` and `high`."""
    optional: bool = False
    """Whether None is a value: the parameter was left out."""
    without: str = ""
    """What holds for a server's client that leaves it out, where that is not the default's own value."""
    generation_config: str = ""
    """The field of a model's generation_config.json that sets the default of a server; "" if none does."""
    needs_tokenizer: bool = False
    """Whether it is about text, so that a server without a tokenizer refuses every value but the default."""
    http: Http = "every"
    """Which bodies of the HTTP server have a field of this name and meaning: those of "every" request for text, those
    of completions and chats ("text"), or none: each body spells it in its "own" way."""
    device: DeviceColumn | None = None

    def fault(self, value: Any) -> str | None:
        """What is allowed, where `value` is an integer or a number that is not; else None."""
        if value is None and self.optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "integer" else (int, float)):
            return self.allowed
        if value in self.special:
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return self.allowed
        too_low = self.low is not None and (value < self.low or (self.above and value == self.low))
        return self.allowed if too_low or (self.high is not None and value > self.high) else None

    @property
    def allowed(self) -> str:
        """The values that an integer or a number may have, as the end of an error: "it must be ..."."""
        return f"it must be {self.range}"

    @property
    def range(self) -> str:
        """The values that an integer or a number may have, in words; "" for other kinds."""
        if self.kind not in ("integer", "number"):
            return ""
        outside = self._meanings(lambda value: not self._within(value))
        others = "".join(f", or {values} for {meaning}" for meaning, values in outside.items())
        return (self._integers() if self.kind == "integer" else self._numbers()) + others

    def _within(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def _integers(self) -> str:
        if (self.low, self.high) == (-(2**63), 2**64 - 1):
            return "a 64-bit integer"
        if self.high is not None:
            return f"an integer from {self.low} to {self.high}"
        return "a positive integer" if self.low == 1 else f"an integer of {self.low} or more"

    def _numbers(self) -> str:
        return f"above {self.low} and at most {self.high}" if self.above else f"a number from {self.low} to {self.high}"

    def _meanings(self, which: Callable[[int], bool]) -> dict[str, str]:
        """Meaning -> the special values of `which` that have it, in words."""
        found: dict[str, list[str]] = {}
        for value, meaning in self.special.items():
            if which(value):
                found.setdefault(meaning, []).append(str(value))
        return {meaning: " or ".join(values) for meaning, values in found.items()}

    @property
    def sentence(self) -> str:
        """The description with the special values, without a full stop."""
        meanings = self._meanings(lambda value: True)
        return "; ".join([self.description, *(f"{values} means {meaning}" for meaning, values in meanings.items())])

    @property
    def default_in_words(self) -> str:
        """What holds for a server's client that leaves it out."""
        own = self.without or self._spelled_default()
        return f"the model's, else {own}" if self.generation_config else own

    def _spelled_default(self) -> str:
        if self.kind == "boolean":
            return "on" if self.default else OFF
        if self.kind in ("integer", "number"):
            return OFF if self.special.get(self.default) == OFF else f"{self.default:g}"
        return "none"

    @property
    def off(self) -> int | None:
        """The first value with which it has no effect, if it has one."""
        return next((value for value, meaning in self.special.items() if meaning == OFF), None)

    def on_device(self, value: Any) -> float:
        """What `value` is in the parameter's column; it must have one."""
        column = self.device
        assert column is not None, self.name
        if value is None or self.special.get(value) == OFF:
            return column.neutral
        return _MAX_INT32 if column.dtype == "int32" and value > _MAX_INT32 else value


def declare(kind: Kind, default: Any, description: str, **facts: Any) -> Any:
    """A field of `SamplingParams`. facts: those of `SamplingField`."""
    declared = SamplingField(kind=kind, default=default, description=description, **facts)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={_METADATA: declared})
    return dataclasses.field(default=default, metadata={_METADATA: declared})


def declared_fields(kind: type) -> dict[str, SamplingField]:
    """By name, in order, what the fields of the dataclass were declared with."""
    return {
        field.name: dataclasses.replace(field.metadata[_METADATA], name=field.name)
        for field in dataclasses.fields(kind)
    }
