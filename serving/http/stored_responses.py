"""GET, DELETE and cancel of stored responses, and the list of what they were given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from jaxinfer.errors import InvalidRequest
from serving import json_text
from serving.access.caller import CALLER
from serving.http.api import Api
from serving.http.errors import ApiError, invalid
from serving.http.response_store import Run, StoredResponse
from serving.http.response_turn import GONE, NO_STORE, Item
from serving.http.responses_events import event_lines
from serving.http.responses_models import LISTED, MAX_LISTED
from serving.http.responses_replay import events_of

PATH = "/v1/responses/{response_id}"
# nginx would gather the events.
_EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def responses_routes(api: Api) -> list[Route]:
    stored = StoredResponses(api)
    return [
        Route(PATH, stored.get, methods=["GET"]),
        Route(PATH, stored.delete, methods=["DELETE"]),
        Route(PATH + "/cancel", stored.cancel, methods=["POST"]),
        Route(PATH + "/input_items", stored.input_items, methods=["GET"]),
    ]


class StoredResponses:
    """A caller finds its own tenant's responses alone. Raises ApiError for those that are not there."""

    def __init__(self, api: Api) -> None:
        self._api, self._store = api, api.responses

    async def get(self, request: Request) -> Response:
        """As it was answered; with `stream` the events behind the one with the number `starting_after`, and in any case
        the last, which tells the end."""
        streams = _one_of(request, "stream", "false", "true") == "true"
        stored, after = self._found(request), _number(request, "starting_after", "of 0 or more", -1)
        if not streams:
            if after != -1:
                raise _bad("starting_after", str(after), "it needs stream")
            return Response(stored.json, media_type="application/json")
        data = stored.json
        events = await self._api.frontend.run(len(data), lambda _: events_of(msgspec.json.decode(data)))
        return StreamingResponse(event_lines(events[min(after + 1, len(events) - 1) :]), headers=_EVENTS)

    async def delete(self, request: Request) -> Response:
        name = request.path_params["response_id"]
        if self._store is None or not self._store.delete(CALLER.get().tenant, name):
            raise self._missing(name)
        return _json({"id": name, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """What is stored has ended, for nothing runs in the background."""
        stored = self._found(request)
        why = "only a response that was made with background true can be cancelled, and this server makes none"
        raise _bad("response_id", stored.id, why)

    async def input_items(self, request: Request) -> Response:
        """A page of the items that the answer was given, those of the conversation before it included."""
        stored, after = self._found(request), request.query_params.get("after")
        newest, limit = _one_of(request, "order", "desc", "asc") == "desc", _limit(request)
        runs = (*stored.before, stored.given)
        size = sum(len(run.data) for run in runs)
        return _json(await self._api.frontend.run(size, lambda _: _page(runs, after, limit, newest=newest)))

    def _found(self, request: Request) -> StoredResponse:
        name = request.path_params["response_id"]
        found = None if self._store is None else self._store.get(CALLER.get().tenant, name)
        if found is None:
            raise self._missing(name)
        return found

    def _missing(self, name: str) -> ApiError:
        why = NO_STORE if self._store is None else GONE
        shown = InvalidRequest("response_id", name, why)
        return ApiError(404, str(shown), param="response_id", code="response_not_found", reason=why)


def _page(runs: Sequence[Run], after: str | None, limit: int, *, newest: bool) -> dict[str, Any]:
    """Raises ApiError. newest: those come first."""
    items = [_listed(item) for run in runs for item in run.items()]
    if newest:
        items.reverse()
    if after is not None:
        place = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise _bad("after", after, "it must be the id of one of the items")
        items = items[place + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(items) > len(page)}


def _limit(request: Request) -> int:
    found = _number(request, "limit", f"from 1 to {MAX_LISTED}", LISTED)
    if not 1 <= found <= MAX_LISTED:
        raise _bad("limit", str(found), f"it must be an integer from 1 to {MAX_LISTED}")
    return found


def _number(request: Request, name: str, allowed: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _bad(name, text, f"it must be an integer {allowed}")
    return int(text)


def _one_of(request: Request, name: str, *allowed: str) -> str:
    """allowed: the first by default. Clients write true as their language does."""
    found = request.query_params.get(name, allowed[0]).lower()
    if found not in allowed:
        raise _bad(name, found, f"it must be {' or '.join(allowed)}")
    return found


def _bad(name: str, value: str, why: str) -> ApiError:
    return invalid(name, str(InvalidRequest(name, value, why)), reason=why)


def _json(value: Any) -> Response:
    return Response(json_text.encode(value), media_type="application/json")


def _listed(item: Item) -> dict[str, Any]:
    """As clients read items: with a type, and a message's content in parts."""
    kind = item.get("type") or "message"
    content = item.get("content")
    if kind == "message" and isinstance(content, str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        return {**item, "type": kind, "content": [{"type": part, "text": content}]}
    return {**item, "type": kind}
