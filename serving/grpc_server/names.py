"""Names of the gateways' services, for whoever must not import the services themselves."""

from __future__ import annotations

from collections.abc import Mapping

VLLM, KSERVE = "vllm", "kserve"
# Names of --gateways, and of the servers in metrics, logs, ledger and traces -> the services' names in gRPC.
SERVICES: Mapping[str, str] = {VLLM: "vllm.grpc.engine.VllmEngine", KSERVE: "inference.GRPCInferenceService"}
