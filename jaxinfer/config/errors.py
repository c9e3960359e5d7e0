"""What a configuration that cannot be served raises."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be served; the message names the field, the value and what is allowed."""


class UnsupportedModelError(ConfigError):
    """A well-formed model that needs something this project does not have; names it and what there is instead."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
