"""Where a runner's executables come from: compiled here, or loaded from a bundle (`jaxinfer/runtime/bundle.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax

Executable = Callable[..., Any]
Lower = Callable[[], jax.stages.Lowered]


class ExecutableSource(Protocol):
    """Gives an executable for a name. Both methods may be called from several threads at once, once for each name.

    name: says what the executable computes, for people and as the key in a bundle: equal names within one engine mean
    equal programs. lower: traces and lowers the program; it is not called where tracing is not needed.
    """

    def get(self, name: str, lower: Lower) -> Executable:
        """The executable, before it has run once."""
        ...

    def replace(self, name: str, lower: Lower, error: Exception) -> Executable:
        """Another executable for `name`, after the first run of the one from `get` raised `error`.

        Arguments that the failed run was to consume may be gone. Raises `error` where there is no other.
        """
        ...


class Compiler:
    """Compiles every program in this process, or fetches it from JAX's persistent cache."""

    def get(self, name: str, lower: Lower) -> Executable:
        return lower().compile()

    def replace(self, name: str, lower: Lower, error: Exception) -> Executable:
        raise error
