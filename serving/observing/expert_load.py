"""How evenly a model's experts are used, as its engines tell it: for metrics, explanations and GET /debug/experts.

On the event loop; nothing here asks an engine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.expert_load import ExpertLoad
from jaxinfer.messages import EngineInfo

RECENT_SECONDS = 60.0  # what gauges look back
_KEPT_EVERY = 1.0  # seconds between the reports that are kept for it


class ExpertLoads:
    """What each engine has told last, and how the sum of all has grown in the last minute.

    Args:
        info: gives what the engines settled on, once that is known.
    """

    def __init__(self, info: Callable[[], EngineInfo | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._info, self._clock = info, clock
        self._engines: dict[int, ExpertLoad] = {}
        self._sum: ExpertLoad | None = None
        self._told = 0.0  # when that changed
        self._kept: deque[tuple[float, ExpertLoad]] = deque()  # earlier sums, and when they were told

    @property
    def devices(self) -> int:
        """That an engine's experts are dealt to."""
        info = self._info()
        return 1 if info is None else info.expert_parallel_size

    def tell(self, load: ExpertLoad, engine: int) -> None:
        """An engine's report."""
        now = self._told = self._clock()
        if not self._kept:
            self._kept.append((now, load.since(load)))
        self._engines[engine] = load
        first, *others = self._engines.values()
        for other in others:
            first = first.plus(other)
        self._sum = first
        if now - self._kept[-1][0] >= _KEPT_EVERY:
            self._kept.append((now, first))
        self._forget(now - RECENT_SECONDS)

    def latest(self, engine: int) -> ExpertLoad | None:
        """What an engine has told last; None in a model without experts."""
        return self._engines.get(engine) or self._nothing()

    def since_start(self) -> ExpertLoad | None:
        """The sum of what all engines have told; None in a model without experts."""
        return self._sum or self._nothing()

    def recent(self) -> ExpertLoad | None:
        """What was told in the last minute; None in a model without experts."""
        border = self._clock() - RECENT_SECONDS
        if self._sum is None or self._told <= border:
            return self._nothing()
        self._forget(border)
        return self._sum.since(self._kept[0][1])

    def _forget(self, border: float) -> None:
        """Keeps one sum from before the border, from which on what came later counts."""
        while len(self._kept) > 1 and self._kept[1][0] <= border:
            self._kept.popleft()

    def _nothing(self) -> ExpertLoad | None:
        info = self._info()
        return None if info is None or not info.expert_layers else ExpertLoad.zeros(info.expert_layers)

    # -- as others want it ----------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Mapping[tuple[str, ...], float]]:
        """Values by the metric's name; nothing in a model without experts."""
        total, recent = self.since_start(), self.recent()
        if total is None or recent is None:
            return {}
        most = max(map(len, total.tokens))
        of_experts = [sum(row[i] for row in total.tokens if i < len(row)) for i in range(most)]
        found: dict[str, Mapping[tuple[str, ...], float]] = {
            "expert_tokens_total": {(str(i),): tokens for i, tokens in enumerate(of_experts)},
            "expert_load_imbalance": _by_layer(recent),
        }
        if self.devices > 1:
            found["expert_device_load_imbalance"] = _by_layer(recent.of_devices(self.devices))
        return found

    def described(self) -> dict[str, Any] | None:
        """All counts, as JSON; None in a model without experts."""
        total, recent = self.since_start(), self.recent()
        if total is None or recent is None:
            return None
        counted = {"since_start": total, "last_minute": recent}
        found: dict[str, Any] = {"expert_parallel_size": self.devices}
        for name, load in counted.items():
            found[name] = imbalance(load, self.devices)
            for layer, tokens in zip(found[name]["layers"], load.tokens, strict=True):
                layer["tokens"] = list(tokens)
        return found


def imbalance(load: ExpertLoad, devices: int) -> dict[str, Any]:
    """How unevenly experts, and devices where there are several, were used, as JSON."""
    of_devices = load.of_devices(devices) if devices > 1 else None
    found: dict[str, Any] = {"expert_tokens": load.total, "imbalance": load.overall_imbalance}
    layers: list[dict[str, Any]] = [
        {"layer": layer, "imbalance": value} for layer, value in zip(load.layers, load.imbalance, strict=True)
    ]
    if of_devices is not None:
        found["device_imbalance"] = of_devices.overall_imbalance
        for layer, value in zip(layers, of_devices.imbalance, strict=True):
            layer["device_imbalance"] = value
    return {**found, "layers": layers}


def _by_layer(load: ExpertLoad) -> dict[tuple[str, ...], float]:
    pairs = zip(load.layers, load.imbalance, strict=True)
    return {(str(layer),): value for layer, value in pairs if value is not None}
