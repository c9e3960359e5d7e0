"""Conversations that clients name: prompt and answer are pinned until the next turn may come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serving.http import ignored
from serving.http.models import Sampling
from serving.prompts import check_session, session_seconds
from serving.request import GenerationRequest, ModelContext

HEADER = "x-session-id"


def with_session(
    request: Sampling, requests: Sequence[GenerationRequest], header: str, context: ModelContext
) -> list[GenerationRequest]:
    """The requests, pinned as session_id (or the header) and prompt_cache_retention of the client's say. Where nothing
    is pinned, those are reported. Raises InvalidRequest."""
    check_session(HEADER, header)
    check_session("session_id", request.session_id or "")
    retention = request.prompt_cache_retention or ""
    seconds = session_seconds(request.session_id or header, retention)
    if not seconds:
        return list(requests)
    if not context.info.max_pinned_pages:
        if request.session_id or not header:
            name = "session_id" if request.session_id else "prompt_cache_retention"
            ignored.passed_over(name, name)
        return list(requests)
    return [replace(each, pin_answer=seconds) for each in requests]
