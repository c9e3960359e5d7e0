"""Both protocols of a server over the fake engine, and clients for the HTTP one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from serving.http.api import ApiConfig
from tests.fakes import FakeOptions
from tests.serving.harness import Running, serving

SCRIPT_ENDS = 257


@dataclass
class HttpServer:
    """grpc: the same server over its other protocol."""

    grpc: Running
    url: str
    http: httpx.AsyncClient

    def openai(self, **settings: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key="none", **{"max_retries": 0, **settings})

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def chat(self, text: str = "hi", **body: Any) -> dict[str, Any]:
        response = await self.post("/v1/chat/completions", **{**greedy_chat(text), **body})
        assert response.status_code == 200, response.text
        return response.json()

    async def complete(self, **body: Any) -> dict[str, Any]:
        response = await self.post("/v1/completions", **{"prompt": "hi", "temperature": 0, "max_tokens": 8, **body})
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, path: str, **body: Any) -> dict[str, Any]:
        """The error of a request that must be answered with 400."""
        response = await self.post(path, **body)
        assert response.status_code == 400, response.text
        return response.json()["error"]

    async def events(self, path: str, **body: Any) -> list[Any]:
        """The data of a stream's events; [DONE] as it is."""
        async with self.http.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            return [parsed async for line in response.aiter_lines() if (parsed := parse(line)) is not None]


def parse(line: str) -> Any:
    if not line.startswith("data: "):
        assert not line or line.startswith("event: "), line
        return None
    data = line.removeprefix("data: ")
    return data if data == "[DONE]" else json.loads(data)


def greedy_chat(text: str = "hi") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}


@contextlib.asynccontextmanager
async def http_serving(options: FakeOptions | None = None, **config: Any) -> AsyncIterator[HttpServer]:
    """Keywords are `serving`'s and ApiConfig's."""
    api = {field.name: config.pop(field.name) for field in dataclasses.fields(ApiConfig) if field.name in config}
    async with serving(options, http_port=0, api=ApiConfig(**api), **config) as running:
        url = f"http://{running.server.http_address}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield HttpServer(running, url, client)


def says(text: str, **options: Any) -> FakeOptions:
    """A model whose greedy answer is this text."""
    return FakeOptions(script=text, eos_after=len(text.encode()), **options)
