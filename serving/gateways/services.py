"""Which gateway services a server has. A service is imported when it is added, and not before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from serving.frontend.frontend import Frontend
from serving.grpc_server.call_handler import CallHandler
from serving.grpc_server.names import KSERVE, SERVICES, VLLM


@dataclass(frozen=True)
class GatewayConfig:
    """names: services to have, of SERVICES. folder: of the model, where tokenizer files are read from."""

    names: tuple[str, ...] = ()
    folder: Path | None = None


class Gateways:
    """services: names in gRPC, for health and reflection."""

    def __init__(self, config: GatewayConfig) -> None:
        self.services = tuple(service for name, service in SERVICES.items() if name in config.names)
        self._config = config

    def add_to(self, server: grpc.aio.Server, frontend: Frontend) -> None:
        if VLLM in self._config.names:
            from smg_grpc_proto.generated import vllm_engine_pb2_grpc

            from serving.gateways import vllm_convert, vllm_engine

            handler = CallHandler(VLLM, frontend, self._config.folder, vllm_convert.NAMES)
            vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(vllm_engine.VllmEngineServicer(handler), server)
        if KSERVE in self._config.names:
            from protos.open_inference import grpc_service_pb2_grpc
            from serving.gateways import infer_convert, open_inference

            handler = CallHandler(KSERVE, frontend, self._config.folder, infer_convert.NAMES)
            grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                open_inference.OpenInferenceServicer(handler), server
            )
            server.add_generic_rpc_handlers((open_inference.unserved(),))
