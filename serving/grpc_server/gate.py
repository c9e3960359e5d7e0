"""The gRPC server's side of the check: an interceptor around every method, known or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from serving.access.access import Access
from serving.access.caller import ADMIN, CALLER, INFER
from serving.errors import Refusal
from serving.grpc_server.names import SERVICES

_INFERENCE = "/jaxinfer.v1.Inference/"
_VLLM, _KSERVE = (f"/{service}/" for service in SERVICES.values())
_OPEN = "open"
# Method, or service with a slash behind -> role; None: any key. What is not here needs the admin's.
NEEDS: Mapping[str, str | None] = {
    _INFERENCE + "Generate": INFER,
    _INFERENCE + "Abort": None,  # of the caller's own requests, for an admin of all
    _INFERENCE + "Tokenize": INFER,
    _INFERENCE + "Detokenize": INFER,
    _INFERENCE + "GetModelInfo": None,
    _INFERENCE + "GetStats": ADMIN,
    _VLLM + "Generate": INFER,
    _VLLM + "Abort": None,
    _VLLM + "HealthCheck": _OPEN,
    _VLLM + "GetModelInfo": None,
    _VLLM + "GetTokenizer": None,
    _VLLM + "GetServerInfo": ADMIN,
    _VLLM + "GetLoads": ADMIN,
    _KSERVE + "ServerLive": _OPEN,
    _KSERVE + "ServerReady": _OPEN,
    _KSERVE + "ModelReady": None,
    _KSERVE + "ServerMetadata": None,
    _KSERVE + "ModelMetadata": None,
    _KSERVE + "ModelConfig": None,
    _KSERVE + "RepositoryIndex": None,
    _KSERVE + "ModelStatistics": ADMIN,
    _KSERVE + "ModelInfer": INFER,
    _KSERVE + "ModelStreamInfer": INFER,
    "/grpc.health.v1.Health/": _OPEN,
    "/grpc.reflection.v1alpha.ServerReflection/": None,
    "/grpc.reflection.v1.ServerReflection/": None,
}


def needed(method: str) -> tuple[str, str | None]:
    """Name of the rule, for the audit log, and the role."""
    for name in (method, method[: method.rfind("/") + 1]):
        if name in NEEDS:
            return name.strip("/"), NEEDS[name]
    return "other", ADMIN


class GrpcGate(grpc.aio.ServerInterceptor):
    """Refuses before the request is parsed; leaves the caller in CALLER for whoever answers."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if self._access.open:
            return await continuation(handler_call_details)
        endpoint, role = needed(handler_call_details.method)
        if role == _OPEN:
            return await continuation(handler_call_details)
        try:
            CALLER.set(self._access.admit(_presented(handler_call_details), role, "grpc", endpoint))
        except Refusal as refusal:
            handler = await continuation(handler_call_details)
            return None if handler is None else _refusing(handler, refusal)
        return await continuation(handler_call_details)


def _presented(details: grpc.HandlerCallDetails) -> str | None:
    metadata = dict(details.invocation_metadata or ())
    scheme, _, key = str(metadata.get("authorization", "")).partition(" ")
    return key.strip() if scheme.lower() == "bearer" else str(metadata.get("x-api-key", "")) or None


def _refusing(handler: Any, refusal: Refusal) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort(refusal.code, refusal.message, refusal.metadata)

    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    found: grpc.RpcMethodHandler[Any, Any] = make(refuse)
    return found
