"""How servers answer what they do not serve: one exception, `Refusal`, carries gRPC's status to all of them.

What is wrong with bad requests themselves is in jaxinfer/errors.py.
"""

from __future__ import annotations

import math

import grpc

from jaxinfer.messages import Rejected

# Defined by gRPC (proposal A6): clients with a retry policy obey it, others can read it. Milliseconds.
RETRY_METADATA = "grpc-retry-pushback-ms"
RETRY_AFTER = "retry-after"  # the same in whole seconds, under HTTP's name
DEFAULT_RETRY_MS = 1000  # where there is nothing to judge by

_REJECTED = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "duplicate": grpc.StatusCode.ALREADY_EXISTS,
    "draining": grpc.StatusCode.UNAVAILABLE,
}


# Why, in words that quote nobody.
_WHY = {
    grpc.StatusCode.INVALID_ARGUMENT: "the engine cannot hold it",
    grpc.StatusCode.NOT_FOUND: "there is none of this name",
    grpc.StatusCode.ALREADY_EXISTS: "its id is in use",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "there is no room, or a limit is used",
    grpc.StatusCode.UNAVAILABLE: "the server is not ready",
    grpc.StatusCode.UNAUTHENTICATED: "it has no valid key",
    grpc.StatusCode.PERMISSION_DENIED: "its key lacks the role",
    grpc.StatusCode.FAILED_PRECONDITION: "a filter or a setting of the server forbids it",
}


class RequestError(Exception):
    """A request is not served, for a reason that its client is told: `Refusal`, and the servers' own answers."""


class Refusal(RequestError):
    """The answer to a call that ends without OK: status code, one sentence, trailing metadata. reason: a word for
    programs where the code alone says too little."""

    def __init__(
        self, code: grpc.StatusCode, message: str, metadata: tuple[tuple[str, str], ...] = (), reason: str = ""
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.metadata, self.reason = code, message, metadata, reason

    def again(self) -> Refusal:
        """The same for one more call: a raised exception leads to the frames of its own call alone (`garbage.let_go`
        clears those)."""
        return Refusal(self.code, self.message, self.metadata, self.reason)

    @property
    def why(self) -> str:
        """For logs: the message may quote the request."""
        return _WHY.get(self.code, self.code.name)


def invalid(error: Exception) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error))


def unfit(message: str) -> Refusal:
    """A request that cannot be answered as it asks, as far as its answer has shown."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def unavailable(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNAVAILABLE, message)


def internal(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INTERNAL, message)


def duplicate(request_id: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.ALREADY_EXISTS,
        f"request_id is {request_id!r}; it must differ from those of the requests that are alive",
    )


def exhausted(message: str, retry_ms: int = DEFAULT_RETRY_MS, reason: str = "") -> Refusal:
    """There is no room now; `retry_ms` is when there is expected to be some."""
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{message}; try again in {retry_ms} ms",
        ((RETRY_METADATA, str(retry_ms)), (RETRY_AFTER, str(math.ceil(retry_ms / 1000)))),
        reason,
    )


def overloaded(message: str, retry_ms: int = DEFAULT_RETRY_MS) -> Refusal:
    """A queue is full."""
    return exhausted(message, retry_ms)


def rejected(message: Rejected) -> Refusal:
    """The engine's refusal as a status."""
    return Refusal(_REJECTED.get(message.kind, grpc.StatusCode.INTERNAL), message.message)
