"""What a configuration that cannot be served raises."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be served; the message names the field, the value and what is allowed."""


class UnsupportedModelError(ConfigError):
    """A well-formed model that needs something this project does not have; names it and what there is instead."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_counts(config: object, *names: str) -> None:
    """Raises ConfigError, naming the field, where one is no positive integer."""
    for name in names:
        value = getattr(config, name)
        require(is_int(value) and value > 0, f"{name} is {value!r}; it must be a positive integer")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
