"""JSON that readers of lines do not cut, whole and in parts."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import msgspec
import pytest

from serving import json_text
from serving.observing.ledger import Ledger
from serving.pace import STEPS
from tests.serving.harness import run
from tests.serving.http.harness import http_serving, says

ENDS = "a\u2028b\u2029c\u0085d\u2027\u202ae\u0084"


async def in_parts(value: Any) -> list[bytes]:
    return [part async for part in json_text.encode_in_parts(value)]


def test_numbers_as_names_are_strings_in_parts_too():
    async def test():
        value = {"logit_bias": {0: 0.5, 17: [1, {2: 3}]}}
        whole = b'{"logit_bias":{"0":0.5,"17":[1,{"2":3}]}}'
        assert b"".join(await in_parts(value)) == json_text.encode(value) == whole

    run(test())


def test_line_ends_of_unicode_are_escaped():
    data = json_text.encode({"x": ENDS, ENDS: [ENDS]})
    assert len(data.decode().splitlines()) == 1
    assert json.loads(data) == {"x": ENDS, ENDS: [ENDS]}
    assert json_text.line_safe_text(json.dumps([ENDS], ensure_ascii=False)).splitlines()[1:] == []
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    assert json_text.encode(everything).decode().splitlines()[1:] == []
    assert json.loads(json_text.encode(everything)) == everything


def value(random_: random.Random, depth: int) -> Any:
    kind = random_.randrange(9 if depth else 5)
    if kind < 5:
        return [None, True, random_.random(), ENDS[: random_.randrange(9)], msgspec.Raw(b'{"raw":[1]}')][kind]
    size = random_.choice([0, 1, 3, 300])
    if kind < 7:
        return [value(random_, depth - 1 if size < 300 else 0) for _ in range(size)]
    return {str(i): value(random_, depth - 1) for i in range(min(size, 5))}


def test_parts_add_up_to_the_whole():
    for seed in range(150):
        given = value(random.Random(seed), 4)
        assert b"".join(asyncio.run(in_parts(given))) == json_text.encode(given)


def test_long_values_come_in_bounded_parts():
    given = {"choices": [{"ids": list(range(200_000)), "raw": [msgspec.Raw(b'{"a":1}')] * 50_000}] * 3, "empty": {}}
    parts = asyncio.run(in_parts(given))
    assert max(map(len, parts)) < 2 * json_text.PART_BYTES
    assert b"".join(parts) == msgspec.json.encode(given)


def test_many_small_values_are_encoded_in_pieces():
    """Few bytes can be much work: other tasks have their turns within a part, too."""
    given = {"choices": [{"i": i, "f": None} for i in range(3000)]}

    async def test():
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        parts = await in_parts(given)
        counting.cancel()
        assert b"".join(parts) == msgspec.json.encode(given)
        assert len(parts) < 3
        assert turns > 3000 * 4 * 2 // STEPS

    asyncio.run(test())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_an_event_is_one_line_to_every_reader(path: str):
    async def test():
        async with http_serving(says(ENDS)) as s:
            prompt = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
            name = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}[path]
            body = {name: prompt[name], "temperature": 0}
            if name == "prompt":
                body["max_tokens"] = 100
            events = [e for e in await s.events(path, **body) if e != "[DONE]"]
            told = ""
            for event in events:
                if event.get("type") == "response.output_text.delta":
                    told += event["delta"]
                for choice in event.get("choices", ()):
                    told += choice["text"] if path == "/v1/completions" else choice["delta"].get("content", "")
            assert told == ENDS
            whole = await s.post(path, **body)
            assert len(whole.text.splitlines()) == 1
            refused = await s.post(path, **{**body, "temperature": ENDS})
            assert len(refused.text.splitlines()) == 1

    run(test())


def test_a_line_of_the_ledger_is_one(tmp_path):
    ledger = Ledger(tmp_path / "usage.jsonl")
    ledger.add({"user": ENDS})
    ledger.close()
    (line,) = (tmp_path / "usage.jsonl").read_text().splitlines()
    assert json.loads(line) == {"user": ENDS}
