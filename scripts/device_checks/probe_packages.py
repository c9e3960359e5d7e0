"""Packages that sections need, by the name that they are imported by. Standard library only."""

from __future__ import annotations

PACKAGES = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu", "flax", "numpy", "torch", "triton",
    "transformers", "jax-triton", "tokamax",
)  # fmt: skip
# What a server imports beside the engine, and the client that measures it.
SERVER_PACKAGES = (
    "grpc", "google.protobuf", "grpc_health", "grpc_reflection", "msgspec", "starlette", "anyio", "uvicorn", "click",
    "h11", "httptools", "prometheus_client", "rich", "jinja2", "tokenizers", "sentencepiece",
)  # fmt: skip
OPTIONAL = {
    "jax_triton": "the backend triton_gpu cannot run; lay its wheel into the folder --wheels",
    "torch": "no torch peers and no second reading of the ceilings",
    "triton": "no flex attention, and no backend triton_gpu",
    "transformers": "no peer for the engine",
    "pytest": "no kernel tests",
    "tokamax": "no tokamax beside the grouped products",
    **dict.fromkeys(SERVER_PACKAGES, "no served step; lay its wheel into the folder --wheels"),
}
