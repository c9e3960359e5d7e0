"""One request's dealings with the store of responses: what it goes on from, and what is kept of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxinfer.errors import InvalidRequest
from serving import json_text
from serving.http import chat_input
from serving.http.errors import invalid
from serving.http.response_store import ResponseStore, Run, StoredResponse, item_ids
from serving.http.responses_events import new_item_id

NO_STORE = "this server keeps no responses (--response-store none)"
GONE = "no such response is kept here: it was never stored, was deleted, or its time or its room has run out"
MAX_SIZE = 16 << 20  # bytes of the conversation that a request goes on from, or of what it is looked for in
_SEARCHED, _LONG = 16 << 10, 256 << 10  # bytes of a body: whose ids are looked at, and that is much work itself
_REFERENCE = "item_reference"
# What a short body may bring back: found before it is decoded.
_ID = re.compile(rb'"(?:previous_response_id|id)"\s*:\s*"([^"\\]{1,256})"')
_PREVIOUS = re.compile(rb'"previous_response_id"\s*:\s*"([^"\\]{1,256})"')

Item = Mapping[str, Any]


class _OpenedRuns:
    """Runs that were decoded for one request, each once. size: their bytes."""

    def __init__(self) -> None:
        self._items: dict[Run, dict[str, dict[str, Any]]] = {}
        self.size = 0

    def items(self, run: Run) -> dict[str, dict[str, Any]]:
        """By id."""
        if run not in self._items:
            self.size += len(run.data)
            self._items[run] = {item["id"]: item for item in run.items()} if self.size <= MAX_SIZE else {}
        return self._items[run]


class ResponseTurn:
    """store: None where nothing is kept. Lookups are threads' work, `keep` the event loop's."""

    def __init__(self, store: ResponseStore | None, tenant: str) -> None:
        self._store, self._tenant = store, tenant
        self._before: tuple[Run, ...] = ()
        self._given: list[dict[str, Any]] = []

    @property
    def can_keep(self) -> bool:
        return self._store is not None

    def size_of_named(self, body: bytes | bytearray) -> int:
        """About how many bytes the body's names of responses and items lead to: how much more work it is than it looks
        like. A long body is looked at by other threads anyhow."""
        if self._store is None or len(body) > _LONG:
            return 0
        found: dict[str, int] = {}
        if _REFERENCE.encode() in body:
            if len(body) > _SEARCHED:
                return _LONG
            names = [match[1] for match in _ID.finditer(body)]
        else:
            names = [match[1] for match in (_PREVIOUS.search(body),) if match is not None]
        for name in (each.decode("utf-8", "replace") for each in names):
            stored = self._store.get(self._tenant, name) or self._store.holder(self._tenant, name)
            if stored is not None:
                found[stored.id] = sum(len(run.data) for run in stored.runs)
        return min(sum(found.values()), MAX_SIZE)

    @property
    def own(self) -> list[dict[str, Any]]:
        """The items that the request gave."""
        return self._given

    # -- what it goes on from -------------------------------------------------------------------------------------

    def earlier(self, previous_response_id: str | None) -> list[dict[str, Any]]:
        """The items of the conversation that the response with this id ends. Raises ApiError."""
        if not previous_response_id:
            return []
        found = None if self._store is None else self._store.get(self._tenant, previous_response_id)
        if found is None:
            why = NO_STORE if self._store is None else GONE
            shown = InvalidRequest("previous_response_id", previous_response_id, why)
            raise invalid("previous_response_id", str(shown), "previous_response_not_found", why)
        size = sum(len(run.data) for run in found.runs)
        if size > MAX_SIZE:
            why = f"its conversation has {size} bytes; at most {MAX_SIZE} are taken"
            raise InvalidRequest("previous_response_id", previous_response_id, why)
        self._before = found.runs
        return [item for run in self._before for item in run.items()]

    def given(self, items: str | Iterable[Item]) -> list[dict[str, Any]]:
        """The request's own items, each with an id, references replaced by their items. Raises InvalidRequest."""
        if isinstance(items, str):
            items = [{"type": "message", "role": "user", "content": items}]
        opened = _OpenedRuns()
        self._given = [
            self._referred(f"input[{i}]", item, opened) if is_reference(item) else _with_id(item)
            for i, item in enumerate(items)
        ]
        return self._given

    def _referred(self, name: str, item: Item, opened: _OpenedRuns) -> dict[str, Any]:
        item_id = item.get("id")
        if not isinstance(item_id, str):
            raise InvalidRequest(f"{name}.id", item_id, "it must be the id of an item")
        holder = None if self._store is None else self._store.holder(self._tenant, item_id)
        if holder is None:
            why = NO_STORE if self._store is None else "no such item is kept here"
            raise InvalidRequest(f"{name}.id", item_id, f"{why}; with store: false clients send the items themselves")
        for run in (holder.output, holder.given):  # what is referred to was said, as a rule
            found = opened.items(run).get(item_id)
            if opened.size > MAX_SIZE:
                why = f"references up to this one are to responses of {opened.size} bytes; at most {MAX_SIZE} are taken"
                raise InvalidRequest(f"{name}.id", item_id, why)
            if found is not None:
                return found
        raise AssertionError("the store's index leads to a response without the item")

    # -- what is kept ---------------------------------------------------------------------------------------------

    async def keep(self, response: Mapping[str, Any]) -> bool:
        """Whether the response is stored now. A request that ends before is not."""
        if self._store is None:
            return False
        given, output = await _encoded(self._given), await _encoded(response["output"])
        head = await _encoded({name: value for name, value in response.items() if name != "output"})
        ids = item_ids((self._given, response["output"]))
        return self._store.put(
            self._tenant, StoredResponse(response["id"], head, self._before, Run(given), Run(output), ids)
        )


def is_reference(item: Item) -> bool:
    """OpenAI's clients may leave the type out."""
    kind = item.get("type")
    return kind == _REFERENCE or (chat_input.says_nothing(kind) and item.keys() <= {"id", "type"} and "id" in item)


def _with_id(item: Item) -> dict[str, Any]:
    if isinstance(item.get("id"), str) and item["id"]:
        return dict(item)
    kind = item.get("type")
    return {**item, "id": new_item_id(kind if isinstance(kind, str) and kind else "message")}


async def _encoded(value: Any) -> bytes:
    return b"".join([part async for part in json_text.encode_in_parts(value)])
