"""The OpenAPI document, made from the request types. Answers are described as far as clients rely on them."""

from __future__ import annotations

from typing import Any

import msgspec

from jaxinfer import __version__
from serving.http.declaring import REPLACE
from serving.http.errors import MESSAGES, speaks_anthropic
from serving.http.fragments import NOTHING, STRING, array_of, or_null, schema_of
from serving.http.ignored import UnknownFields
from serving.http.messages_models import STOP_REASONS, MessagesRequest, MessageTokensRequest
from serving.http.models import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from serving.http.responses_models import LISTED, MAX_LISTED, ResponsesRequest, ResponseTokensRequest

_POSTS: dict[str, tuple[type[msgspec.Struct], str, bool, str]] = {
    "/v1/completions": (CompletionRequest, "Completion", True, "Text that goes on from a prompt"),
    "/v1/chat/completions": (ChatRequest, "ChatCompletion", True, "The assistant's next message in a conversation"),
    "/v1/responses": (ResponsesRequest, "Response", True, "The same in the shape of the Responses API"),
    "/v1/completions/render": (CompletionRequest, "RenderedList", False, "What such a request gives the engine"),
    "/v1/chat/completions/render": (ChatRequest, "Rendered", False, "What such a request gives the engine"),
    MESSAGES: (MessagesRequest, "Message", True, "The same in the shape of Anthropic's Messages API"),
    MESSAGES + "/count_tokens": (
        MessageTokensRequest,
        "MessageTokens",
        False,
        "The number of a message's prompt tokens",
    ),
    "/v1/responses/input_tokens": (ResponseTokensRequest, "InputTokens", False, "The number of its prompt tokens"),
    "/tokenize": (TokenizeRequest, "Tokens", False, "The tokens that a prompt or a conversation becomes"),
    "/detokenize": (DetokenizeRequest, "Prompt", False, "The text of tokens"),
}
_INTEGER: dict[str, Any] = {"type": "integer"}
_BOOLEAN: dict[str, Any] = {"type": "boolean"}
_ERRORS = {
    400: "A field is not as it must be; param, or the message's beginning, names it",
    401: "No valid API key",
    403: "The API key lacks the role",
    404: "The model, the request or the response is not there",
    408: "The request did not come in time",
    409: "request_id is in use",
    413: "The body is too large",
    415: "The body is not JSON, or compressed",
    429: "The server is full, or a limit of the key is used; Retry-After says when to try again",
    500: "The engine failed; the server is about to exit",
    503: "The model is loading, or the server is shutting down",
}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return schema_of({**required, **optional}, *required)


_EVENT = _object({"data": STRING}, event=STRING)
_USAGE = _object({"prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER})
_FINISH = {"enum": ["stop", "length", "tool_calls", "abort", None]}
_MODEL = _object(
    {
        "id": STRING,
        "object": {"const": "model"},
        "created": _INTEGER,
        "owned_by": STRING,
        "root": STRING,
        "max_model_len": _INTEGER,
        "permission": array_of({"type": "object"}),
        "capabilities": _object(dict.fromkeys(("completion", "chat", "tools", "reasoning"), _BOOLEAN)),
    }
)


_RENDERED = _object(
    {
        "request_id": STRING,
        "token_ids": array_of(_INTEGER),
        "sampling_params": {"type": "object"},
        "model": or_null(STRING),
        "stream": _BOOLEAN,
        "priority": _INTEGER,
    }
)
_RATIO = or_null({"type": "number"})
_PINS = _object(
    {
        "engine": _INTEGER,
        "tenant": STRING,
        "pins": _INTEGER,
        "pages": _INTEGER,
        "max_pages": _INTEGER,
        "longest": _INTEGER,
        "seconds": {"type": "number"},
    }
)
_LOAD = _object(
    {
        "expert_tokens": _INTEGER,
        "imbalance": _RATIO,
        "layers": array_of(
            _object(
                {"layer": _INTEGER, "imbalance": _RATIO, "tokens": array_of(_INTEGER)},
                device_imbalance=_RATIO,
            )
        ),
    },
    device_imbalance=_RATIO,
)


def _generated(kind: str, **content: Any) -> dict[str, Any]:
    """An answer of completions or chat completions. content: what a choice has of its own."""
    choice = {"index": _INTEGER, **content, "logprobs": or_null({"type": "object"}), "finish_reason": _FINISH}
    return _object(
        {
            "id": STRING,
            "object": {"const": kind},
            "created": _INTEGER,
            "model": STRING,
            "choices": array_of(_object(choice)),
            "usage": _USAGE,
        }
    )


_ANSWERS: dict[str, dict[str, Any]] = {
    "Completion": _generated("text_completion", text=STRING),
    "ChatCompletion": _generated(
        "chat.completion",
        message=_object(
            {"role": {"const": "assistant"}, "content": or_null(STRING)},
            tool_calls=array_of({"type": "object"}),
            reasoning_content=STRING,
        ),
    ),
    "Response": _object(
        {
            "id": STRING,
            "object": {"const": "response"},
            "created_at": _INTEGER,
            "status": {"enum": ["completed", "incomplete"]},
            "model": STRING,
            "output": array_of(_object({"id": STRING, "type": {"enum": ["message", "reasoning", "function_call"]}})),
            "usage": _object({"input_tokens": _INTEGER, "output_tokens": _INTEGER, "total_tokens": _INTEGER}),
        }
    ),
    "DeletedResponse": _object({"id": STRING, "object": {"const": "response"}, "deleted": {"const": True}}),
    "Items": _object(
        {
            "object": {"const": "list"},
            "data": array_of(_object({"id": STRING, "type": STRING})),
            "first_id": or_null(STRING),
            "last_id": or_null(STRING),
            "has_more": {"type": "boolean"},
        }
    ),
    "Message": _object(
        {
            "id": STRING,
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": STRING,
            "content": array_of(_object({"type": {"enum": ["text", "thinking", "tool_use"]}})),
            "stop_reason": {"enum": [*STOP_REASONS]},
            "stop_sequence": or_null(STRING),
            "usage": _object(
                {
                    "input_tokens": _INTEGER,
                    "cache_creation_input_tokens": _INTEGER,
                    "cache_read_input_tokens": _INTEGER,
                    "output_tokens": _INTEGER,
                }
            ),
        }
    ),
    "MessageTokens": _object({"input_tokens": _INTEGER}),
    "InputTokens": _object({"object": {"const": "response.input_tokens"}, "input_tokens": _INTEGER}),
    "MessageError": _object(
        {"type": {"const": "error"}, "error": _object({"type": STRING, "message": STRING}), "request_id": STRING}
    ),
    "Tokens": _object(
        {"count": _INTEGER, "max_model_len": _INTEGER, "tokens": array_of(_INTEGER)}, token_strs=array_of(STRING)
    ),
    "Prompt": _object({"prompt": STRING}),
    "Rendered": _RENDERED,
    "RenderedList": array_of(_RENDERED),
    "Load": _object({"server_load": _INTEGER}),
    "ServerInfo": _object({"vllm_config": {}, "vllm_env": {"type": "object"}, "system_env": {"type": "object"}}),
    "Error": _object(
        {"error": _object({"message": STRING, "type": STRING, "param": or_null(STRING), "code": or_null(STRING)})}
    ),
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": array_of({"$ref": "#/components/schemas/Model"})}),
    "State": _object({"status": {"enum": ["loading", "warming", "ready", "stuck", "draining", "failed"]}}),
    "Explanation": _object(
        {
            "request_id": STRING,
            "state": {"enum": ["alive", "finished"]},
            "prompt_tokens": _INTEGER,
            "completion_tokens": _INTEGER,
            "seconds": _object({"total": {"type": "number"}}),
        }
    ),
    "Experts": _object({"expert_parallel_size": _INTEGER, "since_start": _LOAD, "last_minute": _LOAD}),
    "Pins": _object({"tenants": array_of(_PINS)}),
    "Version": _object({"version": STRING}),
}


def document(unknown_fields: UnknownFields = "report") -> dict[str, Any]:
    """unknown_fields: where they are refused, objects say that they have no further ones."""
    kinds = [kind for kind, *_ in _POSTS.values()]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {path: {"post": _post(path)} for path in _POSTS}
    paths |= _stored_responses()
    paths["/v1/models"] = _get("Models", "The served model, as a list", 503)
    paths["/v1/models/{model}"] = _get("Model", "The served model", 404, 503, parameter="model")
    paths["/health"] = _get("State", "Whether the server is alive: loaded, and its engine runs")
    paths["/ready"] = _get("State", "Whether the server takes work")
    paths["/ping"] = _get("State", "As /health")
    paths["/load"] = _get("Load", "Requests whose answer is under way")
    paths["/server_info"] = _get("ServerInfo", "What is served and how, for its operator", 503)
    for path in ("/health", "/ready", "/ping"):
        paths[path]["get"]["responses"]["503"] = _content("State", "It is not")
    paths["/metrics"] = _plain("Metrics for Prometheus", "The metrics", "text/plain", STRING)
    about = "How many tokens each expert of the model has computed, and how unevenly"
    paths["/debug/experts"] = _get("Experts", about, 404, 503)
    paths["/debug/pins"] = _get("Pins", "What each tenant has pinned in the prefix cache")
    about = "Where a request's time went"
    paths["/debug/requests/{request_id}"] = _get("Explanation", about, 404, parameter="request_id")
    paths["/version"] = _get("Version", "The server's version")
    paths["/openapi.json"] = _plain("This document", "OpenAPI", "application/json", {"type": "object"})
    requests = {name: _replaced(schema) for name, schema in schemas.items()}
    if unknown_fields == "report":
        requests = _open(requests)
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxinfer", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**requests, **_ANSWERS}},
    }


def _stored_responses() -> dict[str, Any]:
    """About responses that are kept."""
    path, one = "/v1/responses/{response_id}", {"parameter": "response_id"}
    deleted = _get("DeletedResponse", "Lets a stored response go", 404, **one)["get"]
    cancelled = _get("Error", "Ends a response that runs in the background, of which there are none", 404, **one)["get"]
    cancelled["responses"]["400"] = cancelled["responses"].pop("200") | {"description": "The response has ended"}
    items = _get("Items", "What a stored response was given, and the conversation before it", 400, 404, **one)
    items["get"]["parameters"] += [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in (
            ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": LISTED}),
            ("order", {"enum": ["asc", "desc"], "default": "desc"}),
            ("after", {"type": "string", "description": "The last item of the page before"}),
        )
    ]
    found = _get("Response", "A stored response", 400, 404, **one)
    found["get"]["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    found["get"]["parameters"] += [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in (
            ("stream", {"type": "boolean", "default": False, "description": "As its events"}),
            ("starting_after", {"type": "integer", "minimum": 0, "description": "With stream: those behind this one"}),
        )
    ]
    return {
        path: {**found, "delete": deleted},
        path + "/cancel": {"post": cancelled},
        path + "/input_items": items,
    }


def _open(schema: Any) -> Any:
    """Where objects may have fields that the schema does not name."""
    if isinstance(schema, list):
        return [_open(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = schema.get("additionalProperties") in (False, NOTHING)
    return {name: _open(each) for name, each in schema.items() if not (closed and name == "additionalProperties")}


def _replaced(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a request, with what is said by hand in place of what its type says."""
    properties = {}
    for name, value in schema["properties"].items():
        replacement = value.get(REPLACE)
        if replacement is not None:
            value = {"description": value["description"], **replacement}
        properties[name] = value
    return {**schema, "properties": properties}


def _content(name: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
    }


def _post(path: str) -> dict[str, Any]:
    kind, answer, streams, summary = _POSTS[path]
    ok = _content(answer, "The answer")
    if streams:
        ok["content"]["text/event-stream"] = {"schema": _EVENT}
    statuses = [status for status in _ERRORS if streams or status not in (409, 500)]
    error = "MessageError" if speaks_anthropic(path) else "Error"
    return {
        "summary": summary,
        "operationId": kind.__name__.removesuffix("Request").lower() + ("_render" if "Rendered" in answer else ""),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}},
        },
        "responses": {"200": ok, **{str(status): _content(error, _ERRORS[status]) for status in statuses}},
    }


def _get(answer: str, summary: str, *statuses: int, parameter: str | None = None) -> dict[str, Any]:
    """parameter: of the path."""
    errors = {str(status): _content("Error", _ERRORS[status]) for status in statuses}
    found: dict[str, Any] = {"summary": summary, "responses": {"200": _content(answer, "The answer"), **errors}}
    if parameter is not None:
        schema = {"type": "string", "minLength": 1}
        found["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": schema}]
    return {"get": found}


def _plain(summary: str, description: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A GET whose answer is no object of this document."""
    ok = {"description": description, "content": {kind: {"schema": schema}}}
    return {"get": {"summary": summary, "responses": {"200": ok}}}
