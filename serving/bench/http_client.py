"""Asks any server with OpenAI's interface: completions and chat completions, streamed.

aiohttp is imported here alone. It parses HTTP in C and hands lines out as they come: one event costs a quarter to a
third of the processor time that httpx takes, and at hundreds of streams the client must not be what is measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.bench.records import Answer, BenchRequest, RequestFailed, ServerTrouble

if TYPE_CHECKING:
    import aiohttp

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_LONGEST_LINE = 4 << 20  # bytes of one event
_SHOWN = 300  # characters of a server's error


class HttpClient:
    """A connection for each request in flight, as many users would have; idle ones are used again.

    endpoint: `COMPLETIONS` or `CHAT`. body: further fields of every request. headers: such as the API key. ssl: as
    aiohttp takes it, None for plain HTTP.
    """

    def __init__(
        self,
        url: str,
        endpoint: str,
        model: str | None,
        body: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        ssl: Any = None,
    ) -> None:
        import aiohttp

        self._url, self._endpoint, self._model, self._body = url.rstrip("/"), endpoint, model, dict(body)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=True if ssl is None else ssl),
            headers=dict(headers or {}),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            read_bufsize=_LONGEST_LINE // 2,
        )

    async def describe(self) -> Mapping[str, Any]:
        import aiohttp

        try:
            async with self._session.get(f"{self._url}/v1/models") as response:
                text = await response.text()
                if response.status != 200:
                    raise ServerTrouble(f"GET /v1/models: HTTP {response.status}: {text[:_SHOWN]}")
                models = [entry["id"] for entry in json.loads(text)["data"]]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerTrouble(f"no server answers at {self._url}: {error or type(error).__name__}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ServerTrouble(f"GET /v1/models is not answered as OpenAI's interface has it: {error!r}") from error
        if self._model is None:
            if not models:
                raise ServerTrouble("GET /v1/models lists no model")
            self._model = models[0]
        return {"model": self._model}

    def _payload(self, request: BenchRequest) -> dict[str, Any]:
        payload = {
            "model": self._model,
            "max_tokens": request.output_len,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._body,
        }
        if self._endpoint == CHAT:
            payload["messages"] = list(request.messages or ())
        else:
            payload["prompt"] = request.text if request.text is not None else list(request.token_ids or ())
        return payload

    async def ask(self, request: BenchRequest, answer: Answer) -> None:
        import aiohttp

        payload = json.dumps(self._payload(request)).encode()
        headers = {"content-type": "application/json"}
        answer.sent = time.perf_counter()
        try:
            async with self._session.post(self._url + self._endpoint, data=payload, headers=headers) as response:
                if response.status != 200:
                    raise RequestFailed(f"HTTP {response.status}: {_message_of(await response.text())}")
                await self._read(response, answer, keep=bool(request.turns))
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from error
        except ValueError as error:  # a line that is too long, or no JSON
            raise RequestFailed(f"the stream cannot be read: {error}") from error

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer, *, keep: bool) -> None:
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            now, data = time.perf_counter(), line[5:].strip()
            if data == b"[DONE]":
                answer.ended = now
                break
            _take(json.loads(data), now, answer, keep=keep)
        else:
            raise RequestFailed("the stream ended without [DONE]")
        if not answer.counted:
            answer.output_tokens = len(answer.event_times)

    async def close(self) -> None:
        await self._session.close()


def _take(event: Any, now: float, answer: Answer, *, keep: bool) -> None:
    """One event. The chat's first, which has a role and no text, and the one that only ends an answer have no token."""
    if event.get("error"):
        raise RequestFailed(f"an error in the stream: {_message_of(json.dumps(event))}")
    if usage := event.get("usage"):
        answer.prompt_tokens, answer.output_tokens = usage.get("prompt_tokens") or 0, usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        answer.counted = True
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        other = delta.get("reasoning") or delta.get("reasoning_content") or delta.get("tool_calls")
        goes_on = choice.get("finish_reason") is None and "role" not in delta
        if text or other or goes_on or (not answer.event_times and choice.get("finish_reason") is not None):
            answer.took_tokens(now, 1)
        if keep:
            answer.text.append(text)


def _message_of(text: str) -> str:
    """What a server says in the body of an error."""
    try:
        found = json.loads(text)
        message = found["error"]["message"] if isinstance(found["error"], dict) else found["error"]
    except (ValueError, KeyError, TypeError):
        message = text
    return " ".join(str(message).split())[:_SHOWN]
