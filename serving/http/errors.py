"""What a client is told when it does not get what it asked for: OpenAI's error object, status and headers."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from starlette.responses import Response

from jaxinfer.errors import InvalidRequest, faults_of, together
from serving import json_text
from serving.errors import DEFAULT_RETRY_MS, RETRY_METADATA, Refusal, RequestError

# gRPC's status (serving.errors) -> HTTP's, the error's type and code.
_STATUS: dict[grpc.StatusCode, tuple[int, str, str | None]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error", None),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error", "invalid_api_key"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error", "insufficient_role"),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error", "content_filter"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (408, "invalid_request_error", None),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    grpc.StatusCode.ALREADY_EXISTS: (409, "invalid_request_error", "duplicate_request_id"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error", "server_full"),
    grpc.StatusCode.UNAVAILABLE: (503, "service_unavailable_error", "server_unavailable"),
    grpc.StatusCode.INTERNAL: (500, "server_error", None),
}
# The Messages API has a shape of its own: HTTP's status -> the error's type, as Anthropic documents them.
MESSAGES = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
_FIELD = re.compile(r"([a-z][a-z0-9_]*(?:\[\d+\]|\.[a-z0-9_]+)*) is ")
_PARAM = {grpc.StatusCode.NOT_FOUND: "model", grpc.StatusCode.ALREADY_EXISTS: "request_id"}


class ApiError(RequestError):
    """An answer that is an error. retry_ms: when it is worth another try; None: it is not. reason: why, in words of the
    server's own, for its log. details: for programs that read Anthropic's errors. faults: each by itself, where it
    tells several."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_ms: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        reason: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_ms = param, code, retry_ms
        self._headers = headers
        self.details = details
        self.reason = reason or code or ""
        self.faults: tuple[ApiError, ...] = (self,)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def encoded(self) -> bytes:
        return json_text.encode(self.body)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = list(self._headers)
        if self.retry_ms is not None:
            headers.append((b"retry-after", b"%d" % math.ceil(self.retry_ms / 1000)))
            headers.append((b"retry-after-ms", b"%d" % self.retry_ms))
        return headers


def invalid(name: str | None, message: str, code: str | None = None, reason: str = "") -> ApiError:
    return ApiError(400, message, param=name, code=code, reason=reason)


def from_invalid(error: InvalidRequest) -> ApiError:
    return all_of([invalid(fault.field, str(fault), reason=fault.allowed) for fault in faults_of(error)])


def all_of(errors: Sequence[ApiError]) -> ApiError:
    """One answer that tells all of them; param and code are those of the first."""
    first = errors[0]
    if len(errors) == 1:
        return first
    message = together([error.message for error in errors])
    found = invalid(first.param, message, first.code, first.reason)
    found.faults = tuple(errors)
    return found


def from_refusal(refusal: Refusal) -> ApiError:
    status, kind, code = _STATUS.get(refusal.code, _STATUS[grpc.StatusCode.INTERNAL])
    param = _PARAM.get(refusal.code)
    if refusal.code == grpc.StatusCode.INVALID_ARGUMENT:  # the engine's, whose sentences begin with the field
        named = _FIELD.match(refusal.message)
        param = None if named is None else named[1]
    retry_ms: int | None = None
    if status in (429, 503):
        retry_ms = int(dict(refusal.metadata).get(RETRY_METADATA, DEFAULT_RETRY_MS))
    return ApiError(
        status,
        refusal.message,
        kind=kind,
        param=param,
        code=refusal.reason or code,
        retry_ms=retry_ms,
        headers=_CHALLENGE if status == 401 else (),
        reason=refusal.why,
    )


def anthropic_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """The error as the Messages API writes it."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    found: dict[str, Any] = {"type": kind, "message": error.message}
    if error.details is not None:
        found["details"] = error.details
    return {"type": "error", "error": found, "request_id": request_id}


def new_request_id() -> str:
    """Of an answer that comes from no engine."""
    return "req_" + secrets.token_hex(12)


def speaks_anthropic(path: str) -> bool:
    return path == MESSAGES or path.startswith(MESSAGES + "/")


def as_answered(error: ApiError, path: str) -> tuple[dict[str, Any], list[tuple[bytes, bytes]]]:
    """Body and headers of the error as clients of this path read them."""
    if not speaks_anthropic(path):
        return error.body, error.headers
    request_id = new_request_id()
    return anthropic_body(error, request_id), [*error.headers, (b"request-id", request_id.encode())]


def error_response(error: ApiError, path: str) -> Response:
    body, headers = as_answered(error, path)
    named = {name.decode(): value.decode() for name, value in headers}
    return Response(json_text.encode(body), error.status, named, media_type="application/json")


def internal(error: Exception) -> ApiError:
    return ApiError(500, f"{type(error).__name__}: {error}", kind="server_error")
