"""What a request would give the engine: the answer of the `/render` endpoints, shaped as vLLM's GenerateRequest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import msgspec

from jaxinfer.sampling_params import SamplingParams
from serving.http.models import Sampling
from serving.request import PreparedRequest


def rendered(
    requests: Sequence[PreparedRequest], request: Sampling, prefix: str, *, one: bool
) -> dict[str, Any] | list[dict[str, Any]]:
    """prefix: of the answer's id. one: the body has one prompt alone, so the answer is no list."""
    found = [_rendered(each, request, prefix) for each in requests]
    return found[0] if one else found


def _rendered(prepared: PreparedRequest, request: Sampling, prefix: str) -> dict[str, Any]:
    options = getattr(request, "stream_options", None)
    return {
        "request_id": prefix + prepared.request_id,
        "token_ids": prepared.token_ids,
        "sampling_params": _sampling(prepared.params),
        "model": request.model,
        "stream": bool(request.stream),
        "stream_options": msgspec.to_builtins(options) if request.stream else None,
        "cache_salt": request.cache_salt,
        "priority": request.priority or 0,
    }


def _sampling(params: SamplingParams) -> Mapping[str, Any]:
    """Every field under its own name; max_tokens is what the context leaves."""
    return {field.name: msgspec.to_builtins(getattr(params, field.name)) for field in fields(params)}
