"""Which gateway services a server has, and their life. A service is imported when it is added, and not before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving.engine_client import EngineClient
from serving.gateways.door import Door
from serving.gateways.names import KSERVE, SERVICES, VLLM
from serving.request import ModelContext
from serving.text_worker import TextWorker


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
        self._doors: list[Door] = []

    def add_to(self, server: grpc.aio.Server, client: EngineClient, worker: TextWorker) -> None:
        if VLLM in self._config.names:
            from smg_grpc_proto.generated import vllm_engine_pb2_grpc

            from serving.gateways import vllm_convert, vllm_engine

            door = self._door(VLLM, client, worker, vllm_convert.NAMES)
            vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(vllm_engine.VllmEngineServicer(door), server)
        if KSERVE in self._config.names:
            from protos.open_inference import grpc_service_pb2_grpc
            from serving.gateways import infer_convert, open_inference

            door = self._door(KSERVE, client, worker, infer_convert.NAMES)
            grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                open_inference.InferenceServicer(door), server
            )
            server.add_generic_rpc_handlers((open_inference.unserved(),))

    def _door(self, name: str, client: EngineClient, worker: TextWorker, names: Mapping[str, str]) -> Door:
        self._doors.append(Door(name, client, worker, self._config.folder, names))
        return self._doors[-1]

    def open(self, model: ModelContext) -> None:
        """Requests are served from now on."""
        for door in self._doors:
            door.model = model
