"""Long JSON bodies: what they hold is weighed before it is parsed, and no piece of that work is long."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from jaxinfer.errors import InvalidRequest
from serving import json_weight
from serving.grpc_server.convert import json_object
from serving.http import decode
from serving.http.body import BodyReader
from serving.http.errors import ApiError
from serving.http.models import CompletionRequest
from tests.serving.harness import run


def test_json_is_weighed_outside_of_its_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_weight, "_SLICE", 7)
    marks = {",": 1, "[": 5, "{": 5, ":": 20}
    rng = random.Random(5)

    def value(depth: int = 0) -> Any:
        kind = rng.randrange(6)
        if kind == 0 or depth > 3:
            return "".join(rng.choices(',[{:"\\é\n', k=rng.randrange(9)))
        if kind < 3:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        return {f"{i}{rng.choice(',:')}": value(depth + 1) for i in range(rng.randrange(3))}

    for _ in range(500):
        whole = value()
        text = json.dumps(whole, ensure_ascii=rng.random() < 0.5)
        outside, within, escaped = 0, False, False
        for character in text:
            if escaped or (within and character == "\\"):
                escaped = not escaped
            elif character == '"':
                within = not within
            elif not within:
                outside += marks.get(character, 0)
        assert not json_weight.is_too_heavy(text.encode(), outside)
        assert outside == 0 or json_weight.is_too_heavy(text.encode(), outside - 1)


def test_a_body_grows_as_it_comes_and_is_not_joined_at_the_end() -> None:
    parts = [bytes([65 + i]) * 70_000 for i in range(9)]
    messages = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]

    async def receive() -> Any:
        return messages.pop(0)

    async def test() -> None:
        scope = {"headers": [(b"content-type", b"application/json")]}
        reader = BodyReader(1 << 20)
        found = await reader.read(scope, receive)
        assert isinstance(found, bytearray)
        assert found == b"".join(parts)
        assert reader._reading == 0

    run(test())


def test_a_body_of_very_many_values_is_refused() -> None:
    for values in (b"1," * 2_000_001, b"[]," * 400_000, b'{"a":1},' * 80_000, (b"9" * 4000 + b",") * 2000):
        with pytest.raises(ApiError, match="too many values; 2000000 numbers are taken") as caught:
            decode.decode(b'{"prompt":[' + values + b"1]}", CompletionRequest)
        assert caught.value.status == 413
    text = ',[{:"\\' * 300_000
    assert decode.decode(json.dumps({"prompt": text}).encode(), CompletionRequest).prompt == text
    ids = [123_456] * 900_000
    assert decode.decode(json.dumps({"prompt": ids}).encode(), CompletionRequest).prompt == ids
    with pytest.raises(InvalidRequest, match=r"tools_json\[0\] is '8000003 characters'; it has too many values"):
        json_object("tools_json[0]", "[" + "[]," * 2_666_667 + "1")


def test_an_unknown_field_is_named_by_its_beginning() -> None:
    with pytest.raises(ApiError) as caught:
        decode.decode(b'{"prompt":"a","' + b"x" * 1_000_000 + b'":1}', CompletionRequest)
    assert caught.value.message == "x" * 100 + "... is not a field of this request"


def test_of_a_name_of_megabytes_only_the_beginning_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parse = msgspec.json.decode

    def spy(data: Any, **options: Any) -> Any:
        parsed.append(len(data))
        return parse(data, **options)

    monkeypatch.setattr(msgspec.json, "decode", spy)
    with pytest.raises(ApiError) as caught:
        decode.decode(b'{"prompt":"a","' + b"x" * 3_000_000 + b'":1}', CompletionRequest)
    assert caught.value.message == "x" * 100 + "... is not a field of this request"
    assert max(parsed) < 1000
    parsed.clear()
    text = b'{"prompt":"' + b"x" * 3_000_000 + b'"}'
    assert len(decode.decode(text, CompletionRequest).prompt) == 3_000_000
    assert parsed[-1] == len(text)


def test_a_long_name_is_answered_as_a_short_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever surrounds it: names within other values, strings that look like names, escapes, broken bodies."""
    rng = random.Random(8)
    long = b"y" * 400
    pieces = [b'"', b"{", b"}", b"[", b"]", b":", b",", b'"prompt":"a"', b'"n":1.5', b'"user":', long, long, b"1", b" "]
    pieces += [b"\\", b"\xff", b'"' + long + b'":1', b'"' + long + b'"', b'"logit_bias":{', b'{"prompt":"a",']
    bodies = [b"".join(rng.choices(pieces, k=rng.randrange(1, 9))) for _ in range(20_000)]
    bodies += [b"{" + body for body in bodies[:5000]] + [b'{"prompt":"a",' + body + b"}" for body in bodies[:5000]]

    def answer(body: bytes) -> Any:
        try:
            return decode.decode(body, CompletionRequest)
        except ApiError as error:
            return error.status, error.body
        except InvalidRequest as error:
            return str(error)

    expected = [answer(body) for body in bodies]
    monkeypatch.setattr(json_weight, "_LONG_NAME", 300)
    monkeypatch.setattr(json_weight, "_LONG_BEGINNING", 200)
    assert [answer(body) for body in bodies] == expected
    assert sum(json_weight.up_to_long_name(body) is not None for body in bodies) > 50
