"""Requests that schemathesis makes out of the OpenAPI document, right ones and wrong ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from serving.http.openapi import document
from tests.serving.http.harness import http_serving, says

pytestmark = pytest.mark.longer

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server on an event loop of its own."""
    found: list[str] = []
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with http_serving(says("Hello."), tool_call_parser="hermes", reasoning_parser="think") as s:
            found.append(s.url)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(20)
    yield found[0]
    ended.set()
    thread.join(20)


OPERATIONS = {
    operation.ok().label: operation.ok()
    for operation in schemathesis.openapi.from_dict(document()).get_all_operations()
}
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def probe(operation: str, mode: GenerationMode, url: str, examples: int, *, always_the_same: bool = False) -> None:
    """Driven by hypothesis itself: schemathesis' plugin for pytest lags behind pytest."""

    @settings(max_examples=examples, derandomize=always_the_same, deadline=None, suppress_health_check=QUIET)
    @given(case=OPERATIONS[operation].as_strategy(generation_mode=mode))
    def holds(case):
        response = case.call(base_url=url)
        case.validate_response(response, checks=CHECKS)

    holds()


CASES = [
    (operation, mode)
    for operation in OPERATIONS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if (operation.startswith("POST") and "{" not in operation) or mode is GenerationMode.POSITIVE  # those have a body
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_the_document_holds(operation, mode, url):
    probe(operation, mode, url, 12, always_the_same=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_the_document_holds_for_long(operation, mode, url):
    probe(operation, mode, url, 1500)


def test_the_document_names_every_endpoint(url):
    paths = httpx.get(url + "/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/models/{model}"),
        *("/v1/completions/render", "/v1/chat/completions/render", "/ping", "/load", "/server_info"),
        *("/v1/messages", "/v1/messages/count_tokens"),
        *("/tokenize", "/detokenize", "/health", "/ready", "/version", "/openapi.json"),
        *("/metrics", "/debug/requests/{request_id}", "/debug/experts", "/debug/pins", "/v1/responses/{response_id}"),
        *("/v1/responses/{response_id}/cancel", "/v1/responses/{response_id}/input_items"),
        "/v1/responses/input_tokens",
    }


def test_the_page_names_every_field_and_endpoint():
    page = (Path(__file__).resolve().parents[3] / "docs/http.md").read_text()
    found = document()
    for path in found["paths"]:
        assert path in page, path
    for name in ("CompletionRequest", "ChatRequest", "ResponsesRequest", "MessagesRequest", "StreamOptions"):
        for field in found["components"]["schemas"][name]["properties"]:
            assert field in page, field
