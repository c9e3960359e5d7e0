"""Counts backend compilations, so that "never compiles after ready" is a number and not a hope."""

from __future__ import annotations

import jax

# JAX reports this once per executable it builds or fetches from the persistent cache, eager jnp calls included.
_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts from construction on. `close` stops listening."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT:
            self.count += 1

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
