"""`ConfigReader`: typed access to a config.json that remembers which keys were read and refuses the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jaxinfer.config import ConfigError, UnsupportedModelError
from jaxinfer.models import known_keys

Values = Mapping[str, Any]
Meaning = TypeVar("Meaning")

MAX_COUNT = 2**31 - 1  # positions and sizes are int32 on devices
_MAX_LAYERS = 10_000  # each has an entry of its own in a ModelConfig: a wrong number must not fill the memory
_LARGEST = (2 - 2**-23) * 2.0**127  # of float32

# What ModelConfig's errors call these keys.
_FIELD_NAMES: Mapping[str, str] = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
}


class ConfigReader:
    """The parsed config.json of one model, as the function of its family reads it.

    Every method that takes a default returns it where the key is missing or null. The `optional_` methods differ in
    null: for their keys it is a statement ("no window", "no cap"), so they return None and not the default.

    Attributes:
        architecture: the name of the family's architecture, for messages.
        generation_config: the parsed generation_config.json, {} where there is none.
        where: what holds the keys, for messages.
        notes: what whoever serves the model should be told, in the order in which it was found.
    """

    def __init__(
        self,
        config: Values,
        architecture: str,
        generation_config: Values | None = None,
        *,
        where: str = "config.json",
    ) -> None:
        self.architecture = architecture
        self.where = where
        self.generation_config: Values = generation_config or {}
        self.notes: list[str] = []
        self._config = config
        self._read: set[str] = set()
        self._passed_over: set[str] = set()
        self._defaults: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        """Whether the file has the key at all, be it null."""
        return key in self._config

    @property
    def keys_read(self) -> frozenset[str]:
        """The keys that were asked for, whether the file has them or not."""
        return frozenset(self._read)

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands in the file, of any type."""
        value = self._note_read(key, default)
        return default if value is None else value

    def count(self, key: str, default: int) -> int:
        """A positive integer. Raises ConfigError for anything else and for numbers that no device can count to."""
        value = self.raw(key, default)
        check_count(key, value)
        return int(value)

    def optional_count(self, key: str, default: int | None) -> int | None:
        """Like `count`, for a key whose null says something."""
        value = self._optional(key, default)
        if value is not None:
            check_count(key, value)
        return value

    def number_of_layers(self, key: str, default: int) -> int:
        """An integer of 0 or more. Raises ConfigError."""
        value = self.raw(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{key} is {value!r}; it must be a number of layers, 0 or more")
        return value

    def switch(self, key: str, default: bool) -> bool:
        """true or false. Raises ConfigError for anything else."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{key} is {value!r}; it must be true or false")
        return value

    def positive(self, key: str, default: float) -> float:
        """A number above zero that float32 can hold. Raises ConfigError."""
        return _positive(key, self.raw(key, default))

    def optional_positive(self, key: str, default: float | None) -> float | None:
        """Like `positive`, for a key whose null says something."""
        value = self._optional(key, default)
        return None if value is None else _positive(key, value)

    def choice(self, key: str, default: str, meanings: Mapping[str, Meaning]) -> Meaning:
        """What `meanings` has for the name in the file. Raises UnsupportedModelError for a name that it lacks."""
        name = self.raw(key, default)
        if not isinstance(name, str) or name not in meanings:
            raise UnsupportedModelError(f"{key} is {name!r:.200}; it must be one of {sorted(meanings)}")
        return meanings[name]

    def only(self, key: str, *values: Any) -> None:
        """A key that the family has, but not in every value: it is null, missing, or one of `values`.

        Raises UnsupportedModelError for any other value.
        """
        value = self._note_read(key, None)
        if value is not None and value not in values:
            allowed = [*values, None]
            raise UnsupportedModelError(f"{key} is {value!r}; {self.architecture} supports {allowed} only")

    def pass_over(self, *keys: str) -> None:
        """Keys that change nothing in this family, whatever they say."""
        self._passed_over.update(keys)

    def refuse_unread(self, supported: Sequence[str]) -> None:
        """Refuse what nobody has read and could change the network. Called once the family's function has returned.

        Passed over are keys that are known to be harmless and unknown ones that are off: null, false, 0 or empty.

        Args:
            supported: the architectures that are served, for messages.

        Raises UnsupportedModelError that names the key: the first of `known_keys.KINDS`, which say what kind of model
        this is, else the first in the file. A key of `known_keys.ONLY` may have the value that all families support.
        """
        unread = [key for key in self._config if key not in self._read]
        for key, kind in known_keys.KINDS.items():
            if key in unread and self._config[key]:
                raise UnsupportedModelError(
                    f"{self.where} has {key}: this is {kind}, which is not supported; supported are text models "
                    f"of {list(supported)}"
                )
        for key in unread:
            value = self._config[key]
            if key in known_keys.ONLY:
                self.only(key, *known_keys.ONLY[key])
            elif value and not (key in self._passed_over or known_keys.is_harmless(key)):
                known = (self._read | set(known_keys.ONLY)) - known_keys.HARMLESS
                raise UnsupportedModelError(
                    f"{self.where} has {key} = {value!r}, which is not known for {self.architecture}; a key that is "
                    f"not understood may change the results. Known keys: {sorted(known)}"
                )

    def defaults_in(self, message: str) -> str:
        """Words for the values in an error's message that stand in no file: they are the family's defaults."""
        named = []
        for key, value in self._defaults.items():
            words = {key, _FIELD_NAMES.get(key, key)}
            if any(re.search(rf"\b{word}\b", message) for word in words) and repr(value) in message:
                named.append(f"{key} {value!r}")
        if not named:
            return ""
        return f" ({self.where} does not give {', '.join(named)}: the default of {self.architecture} in transformers)"

    def _optional(self, key: str, default: Any) -> Any:
        value = self._note_read(key, default)
        return value if key in self._config else default

    def _note_read(self, key: str, default: Any) -> Any:
        """The value in the file, None where there is none."""
        self._read.add(key)
        value = self._config.get(key)
        if value is None and default is not None:
            self._defaults[key] = default
        return value


def check_count(key: str, value: Any) -> None:
    """Raises ConfigError unless the value is a positive integer that a device can count to."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"{key} is {value!r:.200}; it must be a positive integer")
    if value > (limit := _MAX_LAYERS if key == "num_hidden_layers" else MAX_COUNT):
        raise ConfigError(f"{key} is {value!r:.200}; it must be at most {limit}")


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that float32 can hold, which integers of any length need not be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _positive(key: str, value: Any) -> float:
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{key} is {value!r:.200}; it must be a positive number")
    return float(value)
