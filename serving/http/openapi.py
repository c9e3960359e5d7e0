"""The OpenAPI document, made from the request types. Answers are described as far as clients rely on them."""

from __future__ import annotations

from typing import Any

import msgspec

from jaxinfer import __version__
from serving.http.models import (
    REPLACE,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)

_POSTS: dict[str, tuple[type[msgspec.Struct], str, bool, str]] = {
    "/v1/completions": (CompletionRequest, "Completion", True, "Text that goes on from a prompt"),
    "/v1/chat/completions": (ChatRequest, "ChatCompletion", True, "The assistant's next message in a conversation"),
    "/v1/responses": (ResponsesRequest, "Response", True, "The same in the shape of the Responses API, nothing stored"),
    "/tokenize": (TokenizeRequest, "Tokens", False, "The tokens that a prompt or a conversation becomes"),
    "/detokenize": (DetokenizeRequest, "Prompt", False, "The text of tokens"),
}
_STRING: dict[str, Any] = {"type": "string"}
_INTEGER: dict[str, Any] = {"type": "integer"}
_ERRORS = {
    400: "A field is not as it must be; param names it",
    401: "No valid API key",
    403: "The API key lacks the role",
    404: "The model, or the request, is not there",
    408: "The request did not come in time",
    409: "request_id is in use",
    413: "The body is too large",
    415: "The body is not JSON, or compressed",
    429: "The server is full, or a limit of the key is used; Retry-After says when to try again",
    500: "The engine failed; the server is about to exit",
    503: "The model is loading, or the server is shutting down",
}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _array(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


_USAGE = _object({"prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER})
_FINISH = {"enum": ["stop", "length", "tool_calls", "abort", None]}
_MODEL = _object(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": _INTEGER,
        "owned_by": _STRING,
        "root": _STRING,
        "max_model_len": _INTEGER,
    }
)
_ANSWERS: dict[str, dict[str, Any]] = {
    "Completion": _object(
        {
            "id": _STRING,
            "object": {"const": "text_completion"},
            "created": _INTEGER,
            "model": _STRING,
            "choices": _array(
                _object(
                    {
                        "index": _INTEGER,
                        "text": _STRING,
                        "logprobs": _null({"type": "object"}),
                        "finish_reason": _FINISH,
                    }
                )
            ),
            "usage": _USAGE,
        }
    ),
    "ChatCompletion": _object(
        {
            "id": _STRING,
            "object": {"const": "chat.completion"},
            "created": _INTEGER,
            "model": _STRING,
            "choices": _array(
                _object(
                    {
                        "index": _INTEGER,
                        "message": _object(
                            {"role": {"const": "assistant"}, "content": _null(_STRING)},
                            tool_calls=_array({"type": "object"}),
                            reasoning_content=_STRING,
                        ),
                        "logprobs": _null({"type": "object"}),
                        "finish_reason": _FINISH,
                    }
                )
            ),
            "usage": _USAGE,
        }
    ),
    "Response": _object(
        {
            "id": _STRING,
            "object": {"const": "response"},
            "created_at": _INTEGER,
            "status": {"enum": ["completed", "incomplete"]},
            "model": _STRING,
            "output": _array(_object({"id": _STRING, "type": {"enum": ["message", "reasoning", "function_call"]}})),
            "usage": _object({"input_tokens": _INTEGER, "output_tokens": _INTEGER, "total_tokens": _INTEGER}),
        }
    ),
    "Tokens": _object(
        {"count": _INTEGER, "max_model_len": _INTEGER, "tokens": _array(_INTEGER)}, token_strs=_array(_STRING)
    ),
    "Prompt": _object({"prompt": _STRING}),
    "Error": _object(
        {"error": _object({"message": _STRING, "type": _STRING, "param": _null(_STRING), "code": _null(_STRING)})}
    ),
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": _array({"$ref": "#/components/schemas/Model"})}),
    "State": _object({"status": {"enum": ["loading", "ready", "stuck", "draining", "failed"]}}),
    "Explanation": _object(
        {
            "request_id": _STRING,
            "state": {"enum": ["alive", "finished"]},
            "prompt_tokens": _INTEGER,
            "completion_tokens": _INTEGER,
            "seconds": _object({"total": {"type": "number"}}),
        }
    ),
    "Version": _object({"version": _STRING}),
}


def document() -> dict[str, Any]:
    kinds = [kind for kind, *_ in _POSTS.values()]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {path: {"post": _post(path)} for path in _POSTS}
    paths["/v1/models"] = _get("Models", "The served model, as a list", 503)
    paths["/v1/models/{model}"] = _get("Model", "The served model", 404, 503)
    paths["/v1/models/{model}"]["get"]["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ]
    paths["/health"] = _get("State", "Whether the server is alive: loaded, and its engine runs")
    paths["/ready"] = _get("State", "Whether the server takes work")
    for path in ("/health", "/ready"):
        paths[path]["get"]["responses"]["503"] = _content("State", "It is not")
    paths["/metrics"] = {
        "get": {
            "summary": "Metrics for Prometheus",
            "responses": {"200": {"description": "The metrics", "content": {"text/plain": {"schema": _STRING}}}},
        }
    }
    paths["/debug/requests/{request_id}"] = _get("Explanation", "Where a request's time went", 404)
    paths["/debug/requests/{request_id}"]["get"]["parameters"] = [
        {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ]
    paths["/version"] = _get("Version", "The server's version")
    paths["/openapi.json"] = {
        "get": {
            "summary": "This document",
            "responses": {
                "200": {"description": "OpenAPI", "content": {"application/json": {"schema": {"type": "object"}}}}
            },
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxinfer", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**{name: _replaced(schema) for name, schema in schemas.items()}, **_ANSWERS}},
    }


def _replaced(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a request, with what is said by hand in place of what its type says."""
    properties = {}
    for name, value in schema["properties"].items():
        replacement = value.get(REPLACE)
        if replacement is not None:
            value = {"description": value["description"], **replacement}
        properties[name] = value
    return {**schema, "properties": properties}


def _content(name: str, description: str, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _post(path: str) -> dict[str, Any]:
    kind, answer, streams, summary = _POSTS[path]
    ok = _content(answer, "The answer")
    if streams:
        ok["content"]["text/event-stream"] = {"schema": _object({"data": _STRING}, event=_STRING)}
    statuses = [status for status in _ERRORS if streams or status not in (409, 500)]
    return {
        "summary": summary,
        "operationId": kind.__name__.removesuffix("Request").lower(),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}},
        },
        "responses": {"200": ok, **{str(status): _content("Error", _ERRORS[status]) for status in statuses}},
    }


def _get(answer: str, summary: str, *statuses: int) -> dict[str, Any]:
    errors = {str(status): _content("Error", _ERRORS[status]) for status in statuses}
    return {"get": {"summary": summary, "responses": {"200": _content(answer, "The answer"), **errors}}}
