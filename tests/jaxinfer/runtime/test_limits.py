"""Limits of parts and of sums: what is accepted is packed, planned and ended, whatever it is made of."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.engine import EngineLoop
from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import Drain, Drained, Rejected, StepOutputs, Submit
from jaxinfer.runtime.buckets import make_ladder, pick_bucket
from jaxinfer.runtime.engine_builder import possible_tokens
from jaxinfer.runtime.inputs import SlotSizes
from jaxinfer.runtime.packing import Packer
from jaxinfer.runtime.sampling import MAX_BIAS, MAX_STOP_IDS
from jaxinfer.sampling_params import FIELD_NAMES, MAX_N, MAX_TOKEN_LIST, SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import Scores, StepPlan, StepResult

ROWS, LENGTH, PAGE, MAX_LOGPROBS = 4, 64, 4, 20


class PackingRunner:
    """Packs every plan as the runner does and answers with a token that ends nothing; no device."""

    padded_tokens = compilations = 0

    def __init__(self, vocab: int) -> None:
        self._packer = Packer(SlotSizes(ROWS, LENGTH // PAGE, PAGE), vocab, 16)
        self._ladder = make_ladder(16, ROWS, platform="cpu", batch_invariant=True)
        self.admissions: list[Any] = []

    def dispatch(self, plan: StepPlan) -> Any:
        calls = self._packer.pack_admissions(plan)
        self.admissions += [call.tables for call in calls if call.tables is not None]
        self._packer.pack(plan, pick_bucket(self._ladder, plan.num_tokens))
        most = max(0, *self._packer.most_logprobs(plan))
        sizes = len(plan.rows), plan.num_tokens
        scores = [Scores([0.0] * s, [1] * s, [[0] * most] * s, [[0.0] * most] * s) for s in sizes]
        return Done(StepResult([[0]] * sizes[0], *scores))


class Done:
    ready = True

    def __init__(self, result: StepResult) -> None:
        self.result = lambda: result


def serve(params: list[SamplingParams], eos: tuple[int, ...], vocab: int) -> tuple[list[Any], list[Any]]:
    """What the engine posts for requests, and the admissions it packed. Raises what the engine's loop raises."""
    limits = SchedulerLimits(ROWS, 16, LENGTH, possible_tokens(eos, vocab), vocab_size=vocab)
    runner = PackingRunner(vocab)
    loop = EngineLoop(Scheduler(limits, PagePool(200, PAGE)), runner, None, check=True)  # type: ignore[arg-type]
    inbox: queue.Queue[Any] = queue.Queue()
    for i, each in enumerate(params):
        inbox.put(Submit(f"r{i}", (1, 2, 3, 4, 5), each, i, 0, float(i)))
    inbox.put(Drain())
    posted: list[Any] = []
    loop.run(inbox, posted.append)
    assert isinstance(posted[-1], Drained)
    return posted, runner.admissions


@st.composite
def cases(draw: Any) -> tuple[list[SamplingParams], tuple[int, ...], int]:
    """Requests at and around every documented limit, and a checkpoint's end tokens, some of which it cannot make."""
    vocab = draw(st.sampled_from([24, 150, 4000]))
    eos = tuple(range(draw(st.sampled_from([0, 1, 63, 64, 65, 70, 128, 129, 300]))))
    eos = tuple(token + draw(st.sampled_from([0, 7, 2**31, 2**40])) for token in eos)
    requests = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = draw(st.sampled_from([(0, 0, 0), (1024, 0, 0), (0, 1024, 0), (0, 0, 1024), (341, 341, 342), (5, 3, 2)]))
        start = draw(st.integers(0, 30))
        bias, allowed, bad = (tuple((start + i) % vocab for i in range(size)) for size in sizes)
        stops = tuple((start + 9 + i) % vocab for i in range(draw(st.sampled_from([0, 1, 63, 64]))))
        fields: dict[str, Any] = {
            "n": draw(st.sampled_from([1, 2, MAX_N])),
            "max_tokens": draw(st.sampled_from([1, 3, LENGTH - 5])),
            "min_tokens": draw(st.sampled_from([0, 1, 3])),
            "stop_token_ids": stops,
            "ignore_eos": draw(st.booleans()),
            "logit_bias": dict.fromkeys(bias, draw(st.sampled_from([-100.0, 0.0, 100]))),
            "allowed_token_ids": allowed or None,
            "bad_token_ids": bad,
            "logprobs": draw(st.sampled_from([None, 0, 20, -1])),
            "prompt_logprobs": draw(st.sampled_from([None, 0, 20, -1])),
            "top_k": draw(st.sampled_from([-1, 0, 1, 2**40])),
            "top_p": draw(st.sampled_from([1e-300, 0.5, 1.0])),
            "repetition_penalty": draw(st.sampled_from([1e-300, 1.0, 2.0])),
            "temperature": draw(st.sampled_from([0.0, 1e-300, 100.0])),
            "presence_penalty": draw(st.sampled_from([-2.0, 0.0, 2.0])),
        }
        try:
            params = SamplingParams(**fields)
            params.check_vocabulary(vocab)
            requests.append(params.resolve_logprobs(vocab, MAX_LOGPROBS))
        except InvalidRequest as error:
            assert error.field in FIELD_NAMES
    return requests, eos, vocab


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_what_is_accepted_never_breaks_the_engine(case: tuple[list[SamplingParams], tuple[int, ...], int]) -> None:
    requests, eos, vocab = case
    posted, admissions = serve(requests, eos, vocab)
    refused = {message.request_id: message for message in posted if isinstance(message, Rejected)}
    ended = [o for m in posted if isinstance(m, StepOutputs) for o in m.sequences if o.finish_reason is not None]
    for i, params in enumerate(requests):
        if f"r{i}" in refused:
            message = refused[f"r{i}"]
            assert message.kind == "invalid"
            assert message.message.split(" is ")[0] in FIELD_NAMES
        else:
            assert len([o for o in ended if o.request_id == f"r{i}"]) == params.n
    for inputs in admissions:
        assert (inputs.stop_ids.shape, inputs.bias_ids.shape) == ((MAX_STOP_IDS,), (MAX_BIAS,))


@pytest.mark.parametrize(
    ("ends", "stops", "ignore_eos", "words"),
    [
        (70, 64, False, "the model's 70 end tokens and 64 stop_token_ids, and at most 128 can be"),
        (70, 64, True, "the model's 70 end tokens and 64 stop_token_ids, and at most 128 can be"),
        (129, 0, False, "the model's 129 end tokens, and at most 128 can be"),
        (64, 64, False, None),
        (128, 0, False, None),
    ],
)
def test_stop_ids_and_end_tokens_together(ends: int, stops: int, ignore_eos: bool, words: str | None) -> None:
    eos, own = tuple(range(100, 100 + ends)), tuple(range(500, 500 + stops))
    params = SamplingParams(max_tokens=3, min_tokens=1, stop_token_ids=own, ignore_eos=ignore_eos)
    posted, admissions = serve([params, params.with_changes(min_tokens=0)], eos, 1000)
    refused = [message for message in posted if isinstance(message, Rejected)]
    if words is None:
        assert not refused
        assert set(admissions[0].stop_ids.tolist()) - {1000} == {*eos, *own}
    else:
        (message,) = refused
        assert message.request_id == "r0"
        assert message.message == f"min_tokens is 1; it holds back {words}"


def test_ids_that_are_in_both_lists_count_once() -> None:
    ids = tuple(range(100, 164))
    params = SamplingParams(max_tokens=3, min_tokens=1, stop_token_ids=ids)
    posted, _ = serve([params], (*ids, *range(200, 264)), 1000)
    assert not any(isinstance(message, Rejected) for message in posted)


def test_min_tokens_holds_end_tokens_back_though_they_are_ignored() -> None:
    """vLLM 0.32: `all_stop_token_ids` has the end tokens whether or not ignore_eos is set."""
    params = SamplingParams(max_tokens=3, min_tokens=2, stop_token_ids=(9,), ignore_eos=True)
    _, admissions = serve([params], (7, 8), 1000)
    assert sorted(admissions[0].stop_ids.tolist())[:4] == [7, 8, 9, 1000]


def test_what_nothing_is_left_of_is_refused() -> None:
    params = SamplingParams(max_tokens=3, min_tokens=2, bad_token_ids=tuple(range(2, 40)), stop_token_ids=(0,))
    params.check_vocabulary(40)
    posted, _ = serve([params], (1,), 40)
    assert [m.message for m in posted if isinstance(m, Rejected)] == [
        "min_tokens is 2; with bad_token_ids and what ends the text it bans the whole vocabulary"
    ]


def test_lists_of_tokens_share_one_table() -> None:
    """The documented sum fills the table exactly, whichever list the entries are in."""
    assert MAX_TOKEN_LIST == MAX_BIAS
    thirds = SamplingParams(
        logit_bias=dict.fromkeys(range(341), 1.0),
        allowed_token_ids=tuple(range(1000, 1341)),
        bad_token_ids=tuple(range(2000, 2342)),
        max_tokens=2,
    )
    _, admissions = serve([thirds], (), 4000)
    listed = admissions[0].bias_ids[admissions[0].bias_ids < 4000]
    assert set(listed.tolist()) == {*range(1000, 1341), *range(2000, 2342)}
    assert np.isneginf(admissions[0].bias_values).sum() == 342
    with pytest.raises(InvalidRequest, match="at most 1024 entries"):
        thirds.with_changes(bad_token_ids=tuple(range(2000, 2343)))


def test_no_more_alternatives_than_the_vocabulary_has() -> None:
    """The engine has room for 20; beyond a smaller vocabulary there are ids that mean nothing, of probability 0."""
    params = SamplingParams(logprobs=20, prompt_logprobs=-1).resolve_logprobs(11, 20)
    assert (params.logprobs, params.prompt_logprobs) == (11, 11)
