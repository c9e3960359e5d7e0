"""jaxinfer: Transformer language models served with JAX on NVIDIA GPU, TPU and CPU.

Importing this package does not import jax: the public names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxinfer.constraints.params import StructuredOutputsParams as StructuredOutputsParams
    from jaxinfer.llm import LLM as LLM
    from jaxinfer.outputs import CompletionOutput as CompletionOutput
    from jaxinfer.outputs import RequestOutput as RequestOutput
    from jaxinfer.sampling_params import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "StructuredOutputsParams", "__version__"]

_HOMES = {
    "LLM": "jaxinfer.llm",
    "SamplingParams": "jaxinfer.sampling_params",
    "StructuredOutputsParams": "jaxinfer.constraints.params",
    "RequestOutput": "jaxinfer.outputs",
    "CompletionOutput": "jaxinfer.outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxinfer' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
