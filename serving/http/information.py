"""The endpoints that say what is served and how it is."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jaxinfer import __version__
from jaxinfer.errors import InvalidRequest
from serving import json_text
from serving.http.api import Api
from serving.http.errors import ApiError, from_invalid
from serving.http.openapi import document
from serving.observing.metrics import MEDIA_TYPE
from serving.observing.recorder import RECENT
from serving.request import MAX_REQUEST_ID, ModelContext, check_model

_PERMISSION = {  # OpenAI's old object, as vLLM fills it
    "id": "modelperm-jaxinfer",
    "object": "model_permission",
    "created": 0,
    "allow_create_engine": False,
    "allow_sampling": True,
    "allow_logprobs": True,
    "allow_search_indices": False,
    "allow_view": True,
    "allow_fine_tuning": False,
    "organization": "*",
    "group": None,
    "is_blocking": False,
}


class Information:
    """What is served and how it is."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._began = int(time.time())
        self._document = json_text.encode(document(api.config.unknown_fields))

    async def models(self, _: Request) -> Response:
        model = self._api.frontend.ready_model()
        return _response({"object": "list", "data": [self._card(name, model) for name in model.names]})

    async def model(self, request: Request) -> Response:
        name, model = request.path_params["name"].rstrip("/"), self._api.frontend.ready_model()
        check_model(name, model)
        return _response(self._card(name or model.name, model))

    def _card(self, name: str, model: ModelContext) -> dict[str, Any]:
        """In vLLM's shape, whose `permission` is what may be asked of the model; `capabilities` is ours."""
        form = self._api.form
        return {
            "id": name,
            "object": "model",
            "created": self._began,
            "owned_by": "jaxinfer",
            "root": model.info.model,
            "parent": None,
            "max_model_len": model.info.max_model_len,
            "permission": [{**_PERMISSION, "created": self._began, "allow_logprobs": model.gives_tokens}],
            "capabilities": {
                "completion": True,
                "chat": model.tokenizer is not None and model.tokenizer.chat_template is not None,
                "tools": form.tool_calls != "none",
                "reasoning": form.reasoning != "none",
            },
        }

    async def health(self, _: Request) -> Response:
        """Alive: a server that drains is, one that loads cannot serve yet, one whose engine failed never will. One that
        is stuck may go on; if it does not, it ends by itself."""
        state = self._state()
        return _response({"status": state}, 200 if state in ("ready", "warming", "draining", "stuck") else 503)

    async def ready(self, _: Request) -> Response:
        """Takes work: the same truth as grpc.health.v1."""
        state = self._state()
        return _response({"status": state}, 200 if state in ("ready", "warming") else 503)

    def _state(self) -> str:
        frontend = self._api.frontend
        if frontend.draining:
            return "draining"
        if frontend.failed:
            return "failed"
        if frontend.model is None:
            return "loading"
        if frontend.stuck:
            return "stuck"
        return "warming" if frontend.warming else "ready"

    async def load(self, _: Request) -> Response:
        """vLLM's: requests whose answer is under way."""
        return _response({"server_load": self._api.frontend.open_requests})

    async def server_info(self, request: Request) -> Response:
        """In vLLM's shape, of which the keys are; `config_format` is text, or json for an object."""
        form = request.query_params.get("config_format", "text")
        if form not in ("text", "json"):
            raise from_invalid(InvalidRequest("config_format", form, "it must be text or json"))
        model = self._api.frontend.ready_model()
        config = {"served_model_names": model.names, **_plain(model.info), "api": _plain(asdict(self._api.config))}
        return _response(
            {
                "vllm_config": config if form == "json" else json_text.encode(config).decode(),
                "vllm_env": {},
                "system_env": {"jaxinfer": __version__, "python": platform.python_version(), "os": platform.platform()},
            }
        )

    async def metrics(self, _: Request) -> Response:
        """For Prometheus. What is known here is told: the engine is not asked."""
        return Response(self._api.frontend.recorder.metrics.text(), headers={"content-type": MEDIA_TYPE})

    async def explain(self, request: Request) -> Response:
        name = request.path_params["name"]
        explain = self._api.frontend.recorder.explain
        found = explain(name) or explain(name.rstrip("/"))
        if found is None:
            shown = repr(name if len(name) <= MAX_REQUEST_ID else name[:MAX_REQUEST_ID] + "...")
            message = f"request_id is {shown}; it is neither alive nor among the last {RECENT} requests"
            raise ApiError(404, message, param="request_id", code="request_not_found")
        return _response(found)

    async def experts(self, _: Request) -> Response:
        """Every expert's tokens, as the engines have told them."""
        name = self._api.frontend.ready_model().name
        found = self._api.frontend.recorder.metrics.experts.described()
        if found is None:
            raise ApiError(404, f"the model {name!r} has no experts", code="no_experts")
        return _response(found)

    async def pins(self, request: Request) -> Response:
        """What tenants have pinned, as the engines have told it: of all, or of the `tenant` that the query names."""
        wanted = request.query_params.get("tenant")
        found = [
            {"engine": engine, **of._asdict()}
            for engine, tenants in self._api.frontend.recorder.pins.items()
            for of in tenants
            if wanted in (None, of.tenant)
        ]
        return _response({"tenants": found})

    async def version(self, _: Request) -> Response:
        return _response({"version": __version__})

    async def openapi(self, _: Request) -> Response:
        return Response(self._document, media_type="application/json")


def _response(data: Any, status: int = 200) -> Response:
    return Response(json_text.encode(data), status, media_type="application/json")


def _plain(value: Any) -> Any:
    """As JSON has it; what it has not is written as text."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
