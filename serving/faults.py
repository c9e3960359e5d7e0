"""All faults of a request at once: whoever writes a client mends them in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from jaxinfer.sampling_params import InvalidRequest

MAX_FAULTS = 16  # that are told


class Faults(InvalidRequest):
    """Several faults. Field, value and what is allowed are those of the first; the message has all of them."""

    def __init__(self, faults: Sequence[InvalidRequest]) -> None:
        first = faults[0]
        super().__init__(first.field, first.value, first.allowed)
        self.faults = tuple(faults)
        self.args = (together([str(fault) for fault in faults]),)


def together(messages: Sequence[str]) -> str:
    """One message of several; one alone stays as it is."""
    if len(messages) == 1:
        return messages[0]
    told = [f"({i}) {message}" for i, message in enumerate(messages[:MAX_FAULTS], 1)]
    more = [] if len(messages) <= MAX_FAULTS else ["..."]
    return f"{len(messages)} faults: {'; '.join(told + more)}"


def faults_of(error: InvalidRequest) -> tuple[InvalidRequest, ...]:
    return error.faults if isinstance(error, Faults) else (error,)


def one_of(faults: Sequence[InvalidRequest]) -> InvalidRequest:
    """The exception that tells all of them."""
    return faults[0] if len(faults) == 1 else Faults(faults)


def renamed(error: InvalidRequest, rename: Callable[[InvalidRequest], InvalidRequest]) -> InvalidRequest:
    """The same with each fault in other names."""
    return one_of([rename(fault) for fault in faults_of(error)])


class Gathering:
    """`with gathering:` around each of several checks keeps their InvalidRequest; `done` raises all that were kept."""

    def __init__(self) -> None:
        self.faults: list[InvalidRequest] = []

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, InvalidRequest):
            return False
        # Without its traceback: that leads to the frame which holds this object, and so the request with all its text
        # would stay until a garbage collection found the circle.
        self.faults += [fault.with_traceback(None) for fault in faults_of(error)]
        return True

    def done(self) -> None:
        """Raises InvalidRequest where there was one."""
        if self.faults:
            raise one_of(self.faults)
