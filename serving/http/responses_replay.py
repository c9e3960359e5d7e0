"""The events of a response that has ended, from what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TEXTS = {"output_text": "response.output_text", "reasoning_text": "response.reasoning_text"}


def events_of(response: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As they came, in the same order (see responses_events.py), but each text, and each call's arguments, in one
    piece. response: its JSON object. `sequence_number` rises by one from 0."""
    status = response["status"]
    begun = {
        **response,
        "status": "in_progress",
        "output": [],
        "usage": None,
        "completed_at": None,
        "incomplete_details": None,
    }
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(response["output"]):
        events += _of_item(index, item)
    events.append({"type": f"response.{status}", "response": response})
    return [{"type": event["type"], "sequence_number": i, **event} for i, event in enumerate(events)]


def _of_item(index: int, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    where = {"item_id": item["id"], "output_index": index}
    parts = item.get("content")
    empty: dict[str, Any] = {"arguments": ""} if parts is None else {"content": []}
    yield {
        "type": "response.output_item.added",
        "output_index": index,
        "item": {**item, "status": "in_progress", **empty},
    }
    if parts is None:
        kind = "response.function_call_arguments"
        if item["arguments"]:
            yield {"type": kind + ".delta", **where, "delta": item["arguments"]}
        yield {"type": kind + ".done", **where, "name": item["name"], "arguments": item["arguments"]}
    for place, part in enumerate(parts or ()):
        yield from _of_part({**where, "content_index": place}, part)
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _of_part(where: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    kind, text = _TEXTS[part["type"]], part["text"]
    logprobs = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
    nothing: dict[str, Any] = {"logprobs": []} if logprobs else {}
    yield {"type": "response.content_part.added", **where, "part": {**part, "text": "", **nothing}}
    if text:
        yield {"type": kind + ".delta", **where, "delta": text, **logprobs}
    yield {"type": kind + ".done", **where, "text": text, **logprobs}
    yield {"type": "response.content_part.done", **where, "part": part}
