"""A conversation that is too long, without its oldest turns: what OpenAI's `truncation: auto` asks for."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

from jaxinfer.errors import InvalidRequest
from serving.request import ChatPrompt, ModelContext, encode_prompt

_MOST_RESERVED = 4  # at most this part of the context is kept free for the answer


def shortened(prompt: ChatPrompt, context: ModelContext, max_tokens: int | None) -> ChatPrompt:
    """`prompt` without as many turns behind its instructions as leaves room for max_tokens, or for a quarter of the
    context if that is less, or max_tokens None. A turn is a user's message and all up to the next. The last one stays
    whole, whatever its length; what is too long then is refused as usual. Raises as `encode_prompt`."""
    most = min(context.info.max_model_len, context.info.pool_length)
    share = most // _MOST_RESERVED
    room = most - (share if max_tokens is None else min(max_tokens, share))
    messages = list(prompt.messages)
    begin = next((i for i, each in enumerate(messages) if each["role"] not in ("system", "developer")), len(messages))
    turns = [i for i in range(begin, len(messages)) if messages[i]["role"] == "user"]
    if not turns or _length(prompt, context) <= room:
        return prompt
    found = [replace(prompt, messages=messages[:begin] + messages[turn:]) for turn in turns]
    first = bisect_left(range(len(found) - 1), True, key=lambda i: _length(found[i], context) <= room)
    return found[first]


def _length(prompt: ChatPrompt, context: ModelContext) -> int:
    """In tokens; of what is far too long, one more than fits."""
    try:
        return len(encode_prompt(prompt, context, must_fit=True))
    except InvalidRequest as error:
        if error.field != "prompt":
            raise
        return context.info.max_model_len
