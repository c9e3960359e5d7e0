"""Pins of a real engine, as clients, operators and Prometheus see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving.http.demo_server import demo_server
from tests.serving.observing.test_metrics import Scrape

pytestmark = pytest.mark.longer
PAGE = 64
MARK = {"cache_control": {"type": "ephemeral"}}
LONG = "The little dog went to the park with a big red ball and a small cat. "


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with demo_server(tmp_path_factory.mktemp("pins")) as client:
        yield client


def ask(client: httpx.Client, name: str, times: int = 24, **more: Any) -> tuple[dict[str, Any], str]:
    """Usage, and the request's id. Prompts of different names share nothing."""
    system = [{"type": "text", "text": f"{name}: " + LONG * times, **more.pop("mark", {})}]
    body = {"system": system, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1, **more}
    response = client.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    assert "x-jaxinfer-ignored" not in response.headers
    return response.json()["usage"], response.headers["request-id"]


def flood(client: httpx.Client, name: str) -> None:
    """Prompts that need all 63 pages of the pool."""
    for i in range(14):
        ask(client, f"{name} {i}")


def test_a_marked_prompt_outlives_others(client: httpx.Client) -> None:
    first, request_id = ask(client, "marked", mark=MARK)
    size = first["cache_creation_input_tokens"]
    assert size >= 2 * PAGE
    assert size % PAGE == 0
    assert first["cache_read_input_tokens"] == 0
    assert first["cache_creation"] == {"ephemeral_5m_input_tokens": size, "ephemeral_1h_input_tokens": 0}
    found = client.get(f"/debug/requests/{request_id}").json()
    assert found["pinned_tokens"] == size
    ((tokens, seconds),) = ((pin["tokens"], pin["seconds"]) for pin in found["pins"])
    assert size <= tokens < size + PAGE
    assert seconds == 300.0
    ask(client, "unmarked")
    flood(client, "other")
    again, _ = ask(client, "marked", mark=MARK)
    assert again["cache_read_input_tokens"] >= size
    assert again["cache_creation_input_tokens"] == 0
    assert again["input_tokens"] + again["cache_read_input_tokens"] == first["input_tokens"] + size
    forgotten, _ = ask(client, "unmarked")
    assert forgotten["cache_read_input_tokens"] == 0

    metrics = Scrape(client.get("/metrics").text)
    assert metrics("pinned_pages") == size // PAGE
    assert [metrics("pins_total", event=event) for event in ("made", "expired", "evicted")] == [1, 0, 0]
    (of,) = client.get("/debug/pins", params={"tenant": "default"}).json()["tenants"]
    assert 0 < of.pop("seconds") <= 300
    assert of == {"engine": 0, "tenant": "default", "pins": 1, "pages": size // PAGE, "max_pages": 31, "longest": size}
    assert client.get("/debug/pins", params={"tenant": "other"}).json() == {"tenants": []}


def test_a_session_keeps_its_answer_and_newer_pins_end_older_ones(client: httpx.Client) -> None:
    usage, _ = ask(client, "session", max_tokens=100, session_id="talk", stop=["never"], ignore_eos=True)
    assert usage["cache_creation"]["ephemeral_5m_input_tokens"] >= 2 * PAGE
    flood(client, "more")
    again, _ = ask(client, "session")
    assert again["cache_read_input_tokens"] >= usage["cache_creation_input_tokens"]
    for i in range(6):
        ask(client, f"marked {i}", mark=MARK)
    metrics = Scrape(client.get("/metrics").text)
    assert 20 < metrics("pinned_pages") <= 31
    assert metrics("pins_total", event="evicted") > 0
