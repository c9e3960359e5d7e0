"""Long texts and long prompts: other threads run meanwhile, and nothing is gone through twice."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from jaxinfer.errors import InvalidRequest, _beginning
from jaxinfer.outputs import RequestStream, prompt_end_of
from jaxinfer.sampling_params import SamplingParams, as_token_ids
from jaxinfer.text import PromptEnd, PromptTooLong, TextError, Tokenizer, TooManyTokens
from jaxinfer.text.decoding import clean_up
from jaxinfer.text.tokenizer import first_bad_id
from tests.jaxinfer.text.golden_cases import tokenizer

KINDS = ["byte_level", "llama_json", "gemma_json"]


class Spy:
    """A backend that counts the calls of its methods."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self.backend, name)


def spied(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Tokenizer, list[str]]:
    loaded = tokenizer(kind)
    spy = Spy(loaded._backend)
    monkeypatch.setattr(loaded, "_backend", spy)
    return loaded, spy.calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_takes_the_way_that_lets_others_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the quick brown fox é 漢\n" * 400
    expected = tokenizer(kind)._backend.encode(text).ids
    decoded = tokenizer(kind)._backend.decode(expected, skip_special_tokens=True)
    loaded, calls = spied(kind, monkeypatch)
    assert loaded.encode(text) == expected
    assert loaded.decode(expected) == decoded
    assert calls == ["encode_batch_fast"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [True, False])
def test_many_ids_are_decoded_in_slices(kind: str, skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is that of one call, wherever it is cut: within characters, runs of byte tokens, at the very start."""
    monkeypatch.setattr("jaxinfer.text.tokenizer._SHORT_IDS", 7)
    loaded, rng = tokenizer(kind), random.Random(4)
    plan, size = loaded.decode_plan, loaded.vocab_size
    spy = Spy(plan._backend)
    monkeypatch.setattr(plan, "_backend", spy)
    special = [index for index in range(size) if loaded.is_special(index)]
    bytes_ = [index for index in range(size) if plan.fallback_byte(index) is not None]
    spaces = [index for index in range(size) if plan.text([index]).strip() == ""]
    words = loaded.encode("the quick brown fox é 漢 \U0001f600, don't\n", add_special_tokens=False)
    pools = [pool for pool in (special, bytes_, spaces, words, range(size), [size + 5]) if pool]
    for _ in range(400):
        ids = [rng.choice(pool) for pool in rng.choices(pools, k=rng.randrange(9)) for _ in range(rng.randrange(1, 9))]
        expected = loaded._backend.decode(ids, skip_special_tokens=skip)
        assert loaded.decode(ids, skip_special_tokens=skip) == (clean_up(expected) if plan.clean_up else expected)
    spy.calls.clear()
    loaded.decode(words * 200, skip_special_tokens=skip)
    assert spy.calls.count("decode_batch") > len(words * 200) // 20


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_fit_never_reaches_the_library(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, calls = spied(kind, monkeypatch)
    assert loaded.length_bound is not None
    with pytest.raises(PromptTooLong):
        loaded.encode("b" * (loaded.length_bound.characters(10) + 1), max_tokens=10)
    assert calls == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [3, 3000])
def test_of_too_many_tokens_no_list_is_made(kind: str, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the " * words
    ids = tokenizer(kind).encode(text)

    class Counted:
        def __len__(self) -> int:
            return len(ids)

    loaded, _ = spied(kind, monkeypatch)
    monkeypatch.setattr(loaded._backend, "encode", lambda *_, **__: Counted(), raising=False)
    monkeypatch.setattr(loaded._backend, "encode_batch_fast", lambda *_, **__: [Counted()], raising=False)
    with pytest.raises(TooManyTokens, match=f"text has {len(ids)} tokens; at most {len(ids) - 1} are allowed"):
        loaded.encode(text, max_tokens=len(ids) - 1)
    with pytest.raises(AttributeError, match="ids"):
        loaded.encode(text, max_tokens=len(ids))


@pytest.mark.longer
@pytest.mark.parametrize("kind", KINDS)
def test_another_thread_goes_on(kind: str) -> None:
    """The longest that it waits, of all the time that the call takes."""
    loaded = tokenizer(kind)
    text = "the quick brown fox sat on the mat " * 20_000
    ids = loaded.encode(text) * 4

    def waits(call: Callable[[], Any]) -> tuple[float, float]:
        longest, done = [0.0], threading.Event()

        def other() -> None:
            last = time.perf_counter()
            while not done.is_set():
                time.sleep(0.0005)
                now = time.perf_counter()
                longest[0], last = max(longest[0], now - last), now

        thread = threading.Thread(target=other)
        thread.start()
        began = time.perf_counter()
        call()
        took = time.perf_counter() - began
        done.set()
        thread.join()
        return longest[0], took

    for call in (lambda: loaded._backend.encode_batch_fast([text]), lambda: loaded.encode(text)):
        longest, took = waits(call)
        assert longest < took / 3
    longest, took = waits(lambda: loaded._backend.encode(text))
    assert longest > took / 2  # what the other calls are for
    longest, took = waits(lambda: loaded._backend.decode_batch([ids]))
    assert longest < took / 2


def test_lists_of_ids_are_checked_in_slices() -> None:
    ids = list(range(70_000))
    assert first_bad_id(ids, 70_000) is None
    assert first_bad_id(ids, 69_999) == 69_999
    assert as_token_ids("ids", ids, 70_000) == tuple(ids)
    for bad in (-1, True, 1.0, "3", None, 70_000):
        for position in (0, 65_535, 65_536, 69_999):
            broken = [*ids[:position], bad, *ids[position + 1 :]]
            assert first_bad_id(broken, 70_000) == position
            with pytest.raises(InvalidRequest, match="token ids are integers from 0 to 69999"):
                as_token_ids("ids", broken, 70_000)
    with pytest.raises(TextError, match=r"ids\[70000\] must be an integer"):
        tokenizer("byte_level").decode([5] * 70_000 + [-1])


def test_errors_look_at_the_beginning_of_a_value_only() -> None:
    class Shown:
        def __init__(self) -> None:
            self.times = 0

        def __repr__(self) -> str:
            self.times += 1
            return "x" * 9

    item = Shown()
    error = InvalidRequest("field", [item] * 100_000, "no")
    assert str(error).endswith("...; no")
    assert item.times < 20
    values: list[Any] = [
        (),
        (1,),
        [1, "a", {"b": [2.5, None]}],
        {"k": "v" * 200},
        "q'\"" * 50,
        {},
        b"x",
        (1, 2),
        [[[]]],
    ]
    for value in values:
        whole = repr(value)
        shown = _beginning(value, 81)
        assert shown == whole if len(whole) <= 80 else shown[:77] == whole[:77]


# -- a request's prompt ------------------------------------------------------------------------------------------------


class Watched(list[int]):
    """A prompt that counts how often it is gone through."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__(ids)
        self.read = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.read += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Any:
        self.read += len(self)
        return super().__iter__()

    def __reversed__(self) -> Any:
        for index in super().__reversed__():
            self.read += 1
            yield index


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_share_what_is_known_of_their_prompt(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tokenizer(kind)
    made: list[PromptEnd] = []
    make = PromptEnd.of.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, *args: Any, **kwargs: Any) -> PromptEnd:
        made.append(make(cls, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(PromptEnd, "of", classmethod(counted))
    ids = loaded.encode("the quick brown fox é")
    RequestStream("r", None, ids, SamplingParams(n=64), loaded)
    assert len(made) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_not_looked_at_again(kind: str) -> None:
    loaded = tokenizer(kind)
    params = SamplingParams(n=64)
    ids = Watched(loaded.encode("the quick brown fox") * 1000)
    end = prompt_end_of(loaded, ids, params, frozenset())
    assert ids.read < 5 * len(ids)  # its ids are checked, and its ends looked at
    ids.read = 0
    stream = RequestStream("r", None, ids, params, loaded, prompt_end=end)
    assert ids.read == 0 or ids.read == len(ids)  # the copy in the result
    assert stream.result.prompt_token_ids == ids


@pytest.mark.parametrize("kind", ["llama_json", "gemma_json"])
def test_of_a_run_of_bytes_the_open_character_is_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the run is: and nothing of it is decoded."""
    loaded = tokenizer(kind)
    plan = loaded.decode_plan
    byte = {plan.fallback_byte(index): index for index in range(loaded.vocab_size)}
    whole = [byte[value] for value in "é".encode()]
    word = loaded.encode("the", add_special_tokens=False)
    decoded: list[int] = []
    text = plan.text
    monkeypatch.setattr(plan, "text", lambda ids: decoded.append(len(ids)) or text(ids))
    end = PromptEnd.of(loaded, [*word, *whole * 20_000, whole[0]])
    assert (end.run, end.broken, end.head) == ((whole[0],), False, None)
    assert PromptEnd.of(loaded, [*word, *whole * 20_000]).run == ()
    broken = PromptEnd.of(loaded, [*word, whole[1], *whole * 20_000])
    assert (broken.run, broken.broken) == ((), True)
    assert max(decoded) <= 32
