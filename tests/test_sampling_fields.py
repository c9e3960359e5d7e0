"""Which half implements a sampling field, and what two fields mean together where one half alone would get it wrong.

The engine's half draws tokens and ends sequences by them; the caller's half makes text of them and ends sequences by
that. `HALVES` says who does what for every field; a field without a row fails. `PAIRS` has every pair of fields that
decide where a text ends, what is shown of it or what is told about it, with the test that runs both halves (the real
scheduler and loop over a scripted device, then detokenizer and stop strings) or the reason why the two never meet.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import EngineInfo, SequenceOutput, Submit
from jaxinfer.outputs import RequestStream
from jaxinfer.sampling_params import FIELD_NAMES, SamplingParams
from jaxinfer.text import AnswerReading
from jaxinfer.text.answers import OutputParserNames
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.http.decode import no_effects
from serving.http.models import ChatRequest, CompletionRequest, Sampling, TextSampling
from serving.http.responses_models import ResponsesRequest
from serving.request import GenerationRequest, ModelContext, TokenPrompt, prepare
from tests.fakes import BOS, EOS
from tests.sampling_table import HALVES, HTTP_NAMES, MEETING, PAIRS
from tests.scripted_engine import OTHER_EOS, ScriptedEngine
from tests.serving.harness import run
from tests.serving.http.harness import http_serving, says


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ScriptedEngine:
    return ScriptedEngine(tmp_path_factory.mktemp("tokenizer"))


# -- the tables -----------------------------------------------------------------------------------------------------


def test_every_field_has_a_row() -> None:
    assert set(HALVES) == set(FIELD_NAMES)
    assert {field.name for field in pb.SamplingParams.DESCRIPTOR.fields} == set(HALVES)
    assert all(halves.engine or halves.caller for halves in HALVES.values())


def test_every_sampling_field_of_http_is_one_of_these() -> None:
    """What a server's request has beyond the common fields is its own, or sets a sampling field by another name."""
    common = {field.name for kind in (Sampling, TextSampling) for field in msgspec.structs.fields(kind)}
    about_the_request = {"model", "stream", "stream_options", "priority", "cache_salt", "request_id", "user"}
    about_the_request |= {"session_id", "prompt_cache_retention"}
    about_the_answer = {"return_token_ids", "return_tokens_as_token_ids", "stream_interval", "logprob_token_ids"}
    refused = {"use_beam_search", "length_penalty", "spaces_between_special_tokens", "best_of"}
    own = common - about_the_request - about_the_answer - refused - no_effects(TextSampling).keys()
    unknown = {
        name for name in own if name not in HALVES and HTTP_NAMES.get(name) not in HALVES and not _is_refused(name)
    }
    assert not unknown, "a sampling field without a row"
    for kind in (CompletionRequest, ChatRequest, ResponsesRequest):
        names = {field.name for field in msgspec.structs.fields(kind)}
        not_all = {"n", "prompt_logprobs", "thinking_token_budget"}
        assert {HTTP_NAMES.get(name, name) for name in names} >= set(HALVES) - not_all


def _is_refused(name: str) -> bool:
    from serving.http.models import RECORDED, REFUSED

    return name in REFUSED or name in RECORDED


def test_every_pair_that_may_meet_has_a_row() -> None:
    meeting = [name for name in HALVES if HALVES[name].kind in MEETING]
    pairs = {frozenset(pair) for pair in itertools.combinations(meeting, 2)}
    listed = {frozenset(pair) for pair in PAIRS}
    assert len(listed) == len(PAIRS)
    assert pairs <= listed, sorted(map(sorted, pairs - listed))
    assert {name for pair in PAIRS for name in pair} <= set(HALVES)


def test_every_row_names_a_test_or_a_reason() -> None:
    root = Path(__file__).parent.parent
    for pair, how in PAIRS.items():
        if how.startswith("test_"):
            assert callable(globals().get(how)), (pair, how)
        elif how.startswith("tests/"):
            file, _, name = how.partition("::")
            assert f"def {name}(" in (root / file).read_text(encoding="utf-8"), (pair, how)
        else:
            assert " " in how


# -- both halves at once --------------------------------------------------------------------------------------------


def test_min_tokens_must_fit_max_tokens() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens is 5; it must not exceed max_tokens 4"):
        SamplingParams(max_tokens=4, min_tokens=5)


@pytest.mark.parametrize("min_tokens", range(8))
def test_nothing_ends_a_text_before_min_tokens(engine: ScriptedEngine, min_tokens: int) -> None:
    """The model wants to end at each token, in all ways; whoever forgets min_tokens ends it too early."""
    end = min_tokens + 1
    for stops in ({}, {"stop_token_ids": (ord("x"),)}):
        wish = ord("x") if stops else EOS
        text, ids, reason, stopped = engine.one(
            [[wish, OTHER_EOS if not stops else wish]] * 20, min_tokens=min_tokens, **stops
        )
        assert (text, len(ids), reason, stopped) == ("." * min_tokens, end, "stop", wish if stops else None)
    text, ids, reason, stopped = engine.one(b"." * 20, stop=(".",), min_tokens=min_tokens)
    assert (text, len(ids), reason, stopped) == ("." * min_tokens, end, "stop", ".")
    assert engine.generated <= end + 1, "the engine was told at once"
    # A stop string may begin in the first tokens, as in vLLM.
    text, ids, _, stopped = engine.one(b"abcabcabc", stop=("bca",), min_tokens=min_tokens)
    assert len(ids) == (4 if min_tokens < 4 else 7 if min_tokens < 7 else 40)
    assert stopped == ("bca" if min_tokens < 7 else None)


def test_ignored_end_tokens_are_banned_before_min_tokens_all_the_same(engine: ScriptedEngine) -> None:
    """As in vLLM 0.32: SamplingParams.update_from_generation_config adds them to what min_tokens bans."""
    _, ids, reason, _ = engine.one([[EOS]] * 9, min_tokens=3, max_tokens=6, ignore_eos=True)
    assert (ids, reason) == ([*b"...", EOS, EOS, EOS], "length")


@pytest.mark.parametrize("include", [False, True])
def test_what_is_included_lies_behind_min_tokens(engine: ScriptedEngine, include: bool) -> None:
    text, ids, _, _ = engine.one(b"a.b.c", stop=(".",), min_tokens=3, include_stop_str_in_output=include)
    assert (text, len(ids)) == ("a.b." if include else "a.b", 4)


def test_min_tokens_counts_tokens_without_text_too(engine: ScriptedEngine) -> None:
    for min_tokens, shown in ((0, "a"), (3, "a"), (4, "a.b")):
        text, ids, _, _ = engine.one([BOS, BOS, *b"a.b."], stop=(".",), min_tokens=min_tokens)
        assert (text, len(ids)) == (shown, 4 if shown == "a" else 6)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_the_token_that_ends_the_text_is_shown_when_asked_for(
    engine: ScriptedEngine, include: bool, skip: bool
) -> None:
    given: dict[str, Any] = {"include_stop_str_in_output": include, "skip_special_tokens": skip}
    text, ids, reason, stopped = engine.one(b"abc", stop_token_ids=(ord("b"),), **given)
    assert (text, ids, reason, stopped) == ("ab" if include else "a", [*b"ab"], "stop", ord("b"))
    text, ids, reason, stopped = engine.one([ord("a"), EOS], **given)
    assert (text, ids) == ("a</s>" if include and not skip else "a", [ord("a"), EOS])
    assert (reason, stopped) == ("stop", None)


def test_a_stop_at_the_last_token_is_a_stop(engine: ScriptedEngine) -> None:
    assert engine.one(b"abc", max_tokens=3, stop=("c",)) == ("ab", [*b"abc"], "stop", "c")
    assert engine.one(b"abc", max_tokens=3, stop_token_ids=(99,)) == ("ab", [*b"abc"], "stop", 99)
    assert engine.one([*b"ab", EOS], max_tokens=3) == ("ab", [*b"ab", EOS], "stop", None)


def test_a_text_that_ends_by_length_loses_nothing(engine: ScriptedEngine) -> None:
    for include in (False, True):
        given: dict[str, Any] = {"stop": ("cd",), "include_stop_str_in_output": include}
        assert engine.one(b"abc", max_tokens=3, **given) == ("abc", [*b"abc"], "length", None)


@pytest.mark.parametrize("skip", [False, True])
def test_ignored_end_tokens_count_and_show_as_special_tokens_do(engine: ScriptedEngine, skip: bool) -> None:
    found = engine.one([ord("a"), EOS, ord("b")], max_tokens=3, ignore_eos=True, skip_special_tokens=skip)
    assert found == ("ab" if skip else "a</s>b", [ord("a"), EOS, ord("b")], "length", None)


def test_an_ignored_end_token_may_still_be_a_stop_token(engine: ScriptedEngine) -> None:
    found = engine.one([ord("a"), EOS, OTHER_EOS, ord("b")], ignore_eos=True, stop_token_ids=(OTHER_EOS,))
    assert found == ("a", [ord("a"), EOS, OTHER_EOS], "stop", OTHER_EOS)


def test_the_reason_names_every_end_token_but_the_tokenizers_own(engine: ScriptedEngine) -> None:
    """As in vLLM 0.32: generation_config.json's further end tokens are stop_token_ids there, and the tokenizer's own is
    looked for before those (SamplingParams.update_from_generation_config; v1/core/sched/utils.py, check_stop)."""
    assert engine.one([ord("a"), OTHER_EOS])[2:] == ("stop", OTHER_EOS)
    assert engine.one([ord("a"), EOS])[2:] == ("stop", None)
    assert engine.one([ord("a"), EOS], stop_token_ids=(EOS,))[2:] == ("stop", None)
    assert engine.one([ord("a"), EOS], stop_token_ids=(EOS,), ignore_eos=True)[2:] == ("stop", EOS)
    assert engine.one([EOS, EOS], max_tokens=2, ignore_eos=True)[2:] == ("length", None)
    found = engine.one([ord("a"), EOS], stop=("</s>",), include_stop_str_in_output=True, skip_special_tokens=False)
    assert found[2:] == ("stop", "</s>")


def test_without_a_tokenizer_every_end_token_is_a_reason(engine: ScriptedEngine) -> None:
    output = SequenceOutput("r", 0, (EOS,), None, "stop", EOS, 0)
    stream = RequestStream("r", None, [1], SamplingParams(), None)
    stream.push(output)
    assert stream.result.outputs[0].stop_reason == EOS


def test_whichever_stop_comes_first_ends_the_text(engine: ScriptedEngine) -> None:
    both: dict[str, Any] = {"stop": ("bc",), "stop_token_ids": (ord("c"),)}
    assert engine.one(b"abcd", **both) == ("ab", [*b"abc"], "stop", ord("c")), "the token has no text"
    assert engine.one(b"abcd", **both, include_stop_str_in_output=True) == ("abc", [*b"abc"], "stop", "bc")
    assert engine.one(b"abcd", stop=("b",), stop_token_ids=(ord("c"),)) == ("a", [*b"ab"], "stop", "b")


def test_a_stop_string_spans_ignored_end_tokens(engine: ScriptedEngine) -> None:
    script = [ord("a"), EOS, ord("b"), ord("c")]
    assert engine.one(script, ignore_eos=True, stop=("ab",))[0] == ""
    assert engine.one(script, stop=("ab",)) == ("a", [ord("a"), EOS], "stop", None)


def test_stop_strings_are_sought_in_what_is_shown(engine: ScriptedEngine) -> None:
    script = [ord("a"), EOS, ord("b"), ord(".")]
    given: dict[str, Any] = {"ignore_eos": True, "max_tokens": 4, "stop": ("</s>", "ab")}
    assert engine.one(script, **given)[3] == "ab"
    assert engine.one(script, **given, skip_special_tokens=False)[::3] == ("a", "</s>")


def test_stop_strings_wait_for_the_answer_and_for_min_tokens(engine: ScriptedEngine) -> None:
    reading = AnswerReading(OutputParserNames(reasoning="think"))
    for min_tokens, shown in ((0, "<think>a.</think>b"), (18, "<think>a.</think>b"), (19, "<think>a.</think>b.c")):
        output = engine.play(
            list(b"<think>a.</think>b.c.d"), stop=(".",), min_tokens=min_tokens, reading=reading
        ).result.outputs[0]
        assert (output.text, output.stop_reason) == (shown, ".")


@pytest.mark.parametrize(
    ("script", "params"),
    [
        (b"abcdef", {"stop": ("d",)}),
        (b"abcdef", {"stop_token_ids": (ord("d"),)}),
        (b"abcd", {"max_tokens": 4}),
        ([*b"a", BOS, BOS, EOS], {"skip_special_tokens": True}),
        ([*b"a", EOS, EOS, *b"b"], {"ignore_eos": True, "max_tokens": 4}),
    ],
)
def test_one_entry_for_each_token_up_to_the_end(engine: ScriptedEngine, script: Any, params: dict[str, Any]) -> None:
    output = engine.play(list(script), logprobs=1, **params).result.outputs[0]
    assert len(output.token_ids) == 4
    assert [entry.token_id for entry in output.logprobs or ()] == output.token_ids
    assert output.cumulative_logprob == pytest.approx(sum(-token / 100 for token in output.token_ids))


def test_every_sequence_ends_by_itself(engine: ScriptedEngine) -> None:
    scripts = [list(b"a.b.c.d.e."), list(b"xx.xxxxxxxxx"), [*b"stuvw", EOS], list(b"q" * 12)]
    given: dict[str, Any] = {"n": 4, "stop": (".b", "x."), "min_tokens": 3, "max_tokens": 9}
    stream = engine.play(scripts, **given, include_stop_str_in_output=True, stop_token_ids=(ord("e"),))
    found = [(o.text, o.finish_reason, o.stop_reason) for o in stream.result.outputs]
    assert found == [
        ("a.b.c.d.e", "stop", ord("e")),  # ".b" was complete within the first three tokens
        ("xx.xxxxxx", "length", None),
        ("stuvw", "stop", None),
        ("q" * 9, "length", None),
    ]
    stream = engine.play(scripts, **{**given, "min_tokens": 2}, logprobs=0)
    assert [o.text for o in stream.result.outputs] == ["a", "x", "stuvw", "q" * 9]
    assert [len(o.logprobs or ()) for o in stream.result.outputs] == [3, 3, 6, 9]


def test_the_prompt_is_scored_once_for_all_sequences(tmp_path: Path) -> None:
    """A pool too small for all: sequences are preempted and computed again, and nothing is told twice."""
    engine = ScriptedEngine(tmp_path, num_pages=9)
    prompt = bytes(range(1, 34))
    stream = engine.play([list(b"abc" * 20)] * 4, prompt=prompt, n=4, max_tokens=60, prompt_logprobs=1, logprobs=1)
    assert engine.preemptions > 0
    scored = stream.result.prompt_logprobs or []
    assert [None if entry is None else entry.token_id for entry in scored] == [None, *prompt[1:]]
    for output in stream.result.outputs:
        assert output.text == "abc" * 20
        assert [entry.token_id for entry in output.logprobs or ()] == [*b"abc" * 20]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"allowed_token_ids": (EOS,), "min_tokens": 1}, "all of them end the text"),
        ({"allowed_token_ids": (7,), "stop_token_ids": (7,), "min_tokens": 1}, "all of them end the text"),
        ({"allowed_token_ids": (7, EOS), "bad_token_ids": (7,), "min_tokens": 1}, "all of them end the text"),
        ({"allowed_token_ids": (7,), "bad_token_ids": (7,)}, "it bans every token of allowed_token_ids"),
    ],
)
def test_bans_that_leave_nothing_are_refused(engine: ScriptedEngine, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.play([1], **params)


def test_a_text_ends_only_by_tokens_that_may_be_drawn(engine: ScriptedEngine) -> None:
    assert engine.one([[EOS, 97]] * 9, allowed_token_ids=(97,), max_tokens=4)[:3] == ("aaaa", [97] * 4, "length")
    banned: dict[str, Any] = {"bad_token_ids": (EOS, ord("x")), "stop_token_ids": (ord("x"),), "max_tokens": 3}
    assert engine.one([[EOS, ord("x"), 97]] * 9, **banned)[:3] == ("aaa", [97] * 3, "length")


def test_room_is_counted_behind_the_truncated_prompt() -> None:
    values: dict[str, Any] = dict.fromkeys(EngineInfo._fields, 0)
    values |= {"vocab_size": 260, "max_model_len": 16, "num_pages": 9, "page_size": 16, "max_logprobs": 20}
    context = ModelContext(EngineInfo(**values), "m", None, {}, lambda: 1)

    def prepared(**sampling: Any) -> tuple[int, int | None]:
        found = prepare(GenerationRequest(TokenPrompt([1] * 30), sampling), context)
        return len(found.token_ids), found.params.max_tokens

    assert prepared(truncate_prompt_tokens=4) == (4, 12)
    assert prepared(truncate_prompt_tokens=4, min_tokens=12) == (4, 12)
    with pytest.raises(InvalidRequest, match="min_tokens is 13"):
        prepared(truncate_prompt_tokens=4, min_tokens=13)
    with pytest.raises(InvalidRequest, match="prompt"):
        prepared()


def test_what_is_told_of_a_prompt_is_told_of_what_is_left_of_it() -> None:
    asked = {"prompt": "abcdefgh", "truncate_prompt_tokens": 4, "echo": True, "logprobs": 0, "prompt_logprobs": 0}

    async def test() -> None:
        async with http_serving(says("xyz")) as s:
            choice = (await s.complete(**asked, max_tokens=2, return_token_ids=True))["choices"][0]
            (submit,) = s.grpc.received(Submit)
            left = list(submit.prompt_token_ids)
            assert choice["prompt_token_ids"] == left
            assert len(left) == 4
            assert choice["text"] == bytes(token for token in left if token < BOS).decode() + "xy"
            assert [next(iter(entry)) for entry in choice["prompt_logprobs"][1:]] == [str(token) for token in left[1:]]
            assert len(choice["logprobs"]["token_logprobs"]) == 4 + 2

    run(test())
