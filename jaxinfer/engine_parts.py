"""What the engine's loop drives, as it sees it: runners, their steps, programs still compiled, messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jaxinfer.constraints.matching import Matching
from jaxinfer.expert_load import ExpertLoad
from jaxinfer.scheduling.step_plan import StepPlan, StepResult

if TYPE_CHECKING:
    import numpy as np


class PendingStep(Protocol):
    def result(self) -> StepResult: ...

    @property
    def ready(self) -> bool:
        """Whether the device has finished it."""
        ...


class LateStep(PendingStep, Protocol):
    """A step that draws when it is told to."""

    mask_shape: tuple[int, int]  # of the masks that `draw` wants: rows and words of 32 bits

    def draw(self, masks: np.ndarray) -> None: ...


class StepRunner(Protocol):
    """What the engine needs of a runner; tests bring a fake one."""

    padded_tokens: int

    def dispatch(self, plan: StepPlan) -> PendingStep: ...

    @property
    def compilations(self) -> int: ...


class LateRunner(StepRunner, Protocol):
    """A runner whose steps may draw late."""

    def dispatch_late(self, plan: StepPlan) -> LateStep: ...


class Grammars(NamedTuple):
    """What an engine follows grammars with; the runner is the engine's own."""

    matching: Matching
    runner: LateRunner


class WarmUp(Protocol):
    """Programs that are compiled while steps run: a `Runner` that has begun."""

    def adopt(self) -> None:
        """Lets steps use what has been compiled since the last call. Does not wait."""
        ...

    @property
    def token_budget(self) -> int:
        """Tokens that a step may have by now."""
        ...

    @property
    def whole(self) -> bool:
        """Whether all programs are compiled."""
        ...

    @property
    def compile_seconds(self) -> list[tuple[str, float]]: ...

    def stop(self) -> None:
        """Compiles nothing more."""
        ...


class ExpertLoads(Protocol):
    """What the experts of a model have computed: a runner's `ExpertCounts`."""

    def report(self, *, idle: bool) -> ExpertLoad | None:
        """What is known, when that is news. Waits for no step. idle: none is in flight."""
        ...

    def now(self) -> ExpertLoad:
        """Everything that was dispatched. Waits for it."""
        ...


class Inbox(Protocol):
    """A queue of messages: `queue.Queue`, or the process side's pipe reader."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any: ...
