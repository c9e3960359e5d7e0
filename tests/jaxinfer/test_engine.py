"""The engine's behaviour on a real model: sampling fields, n, stops, limits, aborts, the loop and its counter."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.engine import EngineLoop
from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import Abort, Died, Drain, Drained, Rejected, StepOutputs, Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.request import Guide
from jaxinfer.scheduling.step_plan import StepPlan
from tests.golden_recipe import load_case
from tests.jaxinfer.harness import PAGE, Harness, build


@pytest.fixture(scope="module")
def engine() -> Harness:
    return build(load_case("llama"), max_num_seqs=8, max_num_batched_tokens=16, num_pages=128)


PROMPT = list(load_case("llama").prompts[1])


def sampled(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "max_tokens": 16, "ignore_eos": True, **changes})


def test_n_sequences_differ_and_share_the_prompt(engine: Harness) -> None:
    engine.forget_prefixes()
    name = engine.submit(PROMPT, sampled(n=4), seed=3)
    engine.run()
    texts = {tuple(engine.heard[name, i].tokens) for i in range(4)}
    assert len(texts) == 4
    shared = (len(PROMPT) - 1) // PAGE * PAGE
    assert [engine.heard[name, i].cached_tokens for i in range(4)] == [0, shared, shared, shared]


def test_sequence_of_n_equals_itself_alone(engine: Harness) -> None:
    """Sequence 0 of a request with n = 3 is the request with n = 1."""
    name = engine.submit(PROMPT, sampled(n=3), seed=9)
    engine.run()
    assert engine.heard[name, 0].tokens == engine.generate(PROMPT, sampled(), seed=9).tokens


def test_seeds(engine: Harness) -> None:
    texts = [tuple(engine.generate(PROMPT, sampled(), seed=seed).tokens) for seed in (1, 2**32 + 1, 2**63, 1)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_penalties_with_a_step_in_flight_equal_the_synchronous_run(engine: Harness) -> None:
    params = sampled(repetition_penalty=1.3, frequency_penalty=0.7, presence_penalty=0.4, max_tokens=40)
    pipelined = engine.generate(PROMPT, params, seed=4).tokens
    name = engine.submit(PROMPT, params, seed=4)
    for sequence in engine.loop.scheduler._requests[name].sequences:
        sequence.sync = True
    steps = engine.steps
    engine.run()
    assert engine.steps - steps > 60, "a synchronous row takes every other step"
    assert engine.heard[name, 0].tokens == pipelined
    assert pipelined != engine.generate(PROMPT, sampled(max_tokens=40), seed=4).tokens


def test_penalties_count_tokens_of_a_prefix_hit(engine: Harness) -> None:
    params = sampled(temperature=0, repetition_penalty=1.8, presence_penalty=1.5, max_tokens=24)
    engine.forget_prefixes()
    cold = engine.generate(PROMPT, params)
    warm = engine.generate(PROMPT, params)
    assert (cold.cached_tokens, warm.cached_tokens) == (0, (len(PROMPT) - 1) // PAGE * PAGE)
    assert warm.tokens == cold.tokens
    assert cold.tokens != engine.generate(PROMPT, sampled(temperature=0, max_tokens=24)).tokens


def test_bias_allowed_and_bad_tokens(engine: Harness) -> None:
    greedy = engine.generate(PROMPT, sampled(temperature=0)).tokens
    bad = engine.generate(PROMPT, sampled(temperature=0, bad_token_ids=tuple(greedy[:2]))).tokens
    assert not set(greedy[:2]) & set(bad)
    allowed = engine.generate(PROMPT, sampled(allowed_token_ids=(3, 5, 8)), seed=1).tokens
    assert set(allowed) <= {3, 5, 8}
    assert len(set(allowed)) > 1
    assert set(engine.generate(PROMPT, sampled(logit_bias={17: 100.0}), seed=1).tokens) == {17}
    # The slot's next request must not inherit any of it.
    assert engine.generate(PROMPT, sampled(temperature=0)).tokens == greedy


def test_stop_tokens_and_min_tokens(engine: Harness) -> None:
    greedy = engine.generate(PROMPT, sampled(temperature=0)).tokens
    stop = greedy[4]
    first = greedy.index(stop)
    heard = engine.generate(PROMPT, sampled(temperature=0, stop_token_ids=(stop,)))
    assert (heard.tokens, heard.finish_reason) == (greedy[: first + 1], "stop")
    later = engine.generate(PROMPT, sampled(temperature=0, stop_token_ids=(stop,), min_tokens=10))
    assert stop not in later.tokens[:10]
    assert len(later.tokens) > 10


def test_logprobs_of_the_greedy_token_lead_the_list(engine: Harness) -> None:
    heard = engine.generate(PROMPT, sampled(temperature=0, logprobs=3))
    for token, entry in zip(heard.tokens, heard.logprobs, strict=True):
        assert (entry.token_id, entry.rank, entry.top[0][0]) == (token, 1, token)
        assert len(entry.top) == 3
        assert entry.top[0][1] == entry.logprob >= entry.top[1][1] >= entry.top[2][1]


def test_requests_that_can_never_be_served(engine: Harness) -> None:
    limit = engine.loop.info.max_model_len
    with pytest.raises(InvalidRequest, match="max_tokens is 9999"):
        engine.submit(PROMPT, sampled(max_tokens=9999))
    with pytest.raises(InvalidRequest, match=f"at most {limit - 1} fit"):
        engine.submit([1] * limit, sampled(max_tokens=1))
    with pytest.raises(InvalidRequest, match="at least one token"):
        engine.submit([], sampled())


def test_abort_gives_pages_back_within_one_step(engine: Harness) -> None:
    pool = engine.loop.scheduler.pool
    name = engine.submit(PROMPT, sampled(max_tokens=100))
    for _ in range(8):
        engine.step()
    assert pool.available < pool.usable_pages
    engine.loop.scheduler.abort(name)
    engine.step()
    assert pool.available == pool.usable_pages
    engine.run()
    assert engine.heard[name, 0].finish_reason == "abort"


def run_loop(loop: EngineLoop, messages: list[Any]) -> list[Any]:
    inbox: queue.Queue[Any] = queue.Queue()
    posted: list[Any] = []
    for message in messages:
        inbox.put(message)
    thread = threading.Thread(target=loop.run, args=(inbox, posted.append))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    loop._draining = False
    return posted


def submit(name: str, **changes: Any) -> Submit:
    return Submit(name, tuple(PROMPT), sampled(**changes), 0, 0, 0.0)


def test_loop_drains_and_refuses_what_comes_after(engine: Harness) -> None:
    posted = run_loop(engine.loop, [submit("a"), submit("a"), Drain(), submit("b")])
    assert [m.kind for m in posted if isinstance(m, Rejected)] == ["duplicate", "draining"]
    assert isinstance(posted[-1], Drained)
    outputs = [o for m in posted if isinstance(m, StepOutputs) for o in m.sequences]
    assert len([o for o in outputs if o.token_ids]) == 16
    assert outputs[-1].finish_reason == "length"


def test_loop_reports_aborts_of_waiting_requests(engine: Harness) -> None:
    posted = run_loop(engine.loop, [submit("a"), Abort("a"), Abort("never seen"), Drain()])
    outputs = [o for m in posted if isinstance(m, StepOutputs) for o in m.sequences]
    assert [(o.request_id, o.finish_reason) for o in outputs] == [("a", "abort")]


def test_many_submissions_do_not_keep_running_sequences_waiting(
    engine: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two steps only so many are taken, and fewer of long prompts; all of them in the end, and in order."""
    monkeypatch.setattr("jaxinfer.engine.MESSAGES_A_STEP", 6)
    monkeypatch.setattr("jaxinfer.engine._TOKENS_A_MESSAGE", len(PROMPT))  # so each counts for two
    inbox: queue.Queue[Any] = queue.Queue()
    taken: list[int] = []  # before each step
    added = 0
    add, step = engine.loop.scheduler.add, engine.loop.step

    def counted(request: Submit, guides: Collection[Guide] = ()) -> None:
        nonlocal added
        added += 1
        add(request, guides)

    def stepped() -> StepOutputs | None:
        nonlocal added
        taken.append(added)
        if len(taken) == 1:
            for message in (*(submit(f"r{i}", max_tokens=2) for i in range(7)), Drain()):
                inbox.put(message)
        added = 0
        return step()

    monkeypatch.setattr(engine.loop.scheduler, "add", counted)
    monkeypatch.setattr(engine.loop, "step", stepped)
    posted: list[Any] = []
    for i in range(5):
        inbox.put(submit(f"first{i}", max_tokens=12))
    engine.loop.run(inbox, posted.append)
    engine.loop._draining = False
    assert taken[:4] == [5, 3, 3, 1]  # when nothing runs nobody is kept waiting
    assert isinstance(posted[-1], Drained)
    ends = [o.request_id for m in posted if isinstance(m, StepOutputs) for o in m.sequences if o.finish_reason]
    assert sorted(ends) == [f"first{i}" for i in range(5)] + [f"r{i}" for i in range(7)]


def test_loop_dies_loudly(engine: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: StepPlan) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.loop.runner, "dispatch", broken)
    posted: list[Any] = []
    inbox: queue.Queue[Any] = queue.Queue()
    inbox.put(submit("c"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.loop.run(inbox, posted.append)
    assert isinstance(posted[-1], Died)
    assert posted[-1].error == "RuntimeError: the device is gone"
    engine.loop.scheduler.abort("c")
    engine.loop.scheduler.take_ended()


def test_counter_sees_one_eager_call(engine: Harness) -> None:
    """The whole module has compiled nothing since warm-up; one eager call on a new shape is seen."""
    assert engine.loop.runner.compilations == 0
    jnp.negative(np.ones((3, 1, 4, 1, 5), np.float32)).block_until_ready()
    assert engine.loop.runner.compilations == 1


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8"])
def test_a_quantized_cache_stays_close(kv_cache_dtype: str) -> None:
    """The same prompt's log-probabilities with narrow pages: close to float32's, and not equal to them."""
    case = load_case("llama")
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    found = {}
    for kind in ("float32", kv_cache_dtype):
        engine = build(case, kv_cache_dtype=kind)
        name = engine.submit(list(case.prompts[0]), params)
        engine.run()
        found[kind] = np.array([entry.logprob for part in engine.prompts[name] for entry in part.entries])
    difference = np.abs(found[kv_cache_dtype] - found["float32"]).max()
    # int8 is off by up to a 254th of a vector's largest number, fp8 by up to a 16th of each: two layers of that.
    assert 1e-6 < difference < (0.06 if kv_cache_dtype == "int8" else 0.3)


@pytest.fixture
def not_a_number(engine: Harness) -> Iterator[int]:
    """A token whose embedding is NaN for a while: whoever has it in a prompt computes NaN from there on."""
    runner: Any = engine.loop.runner
    token = next(token for token in range(runner.spec.config.vocab_size) if token not in PROMPT)
    leaves, treedef = runner._leaves, runner.spec.treedef
    paths = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(treedef, list(leaves)))[0]
    (at,) = (i for i, (path, _) in enumerate(paths) if "embed" in jax.tree_util.keystr(path))
    weight = np.array(leaves[at])
    weight[token] = np.nan
    runner._leaves = (*leaves[:at], jax.device_put(weight, leaves[at].sharding), *leaves[at + 1 :])
    yield token
    runner._leaves = leaves


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 2])
def test_without_numbers_one_request_fails_and_the_others_are_as_alone(
    engine: Harness, not_a_number: int, temperature: float, n: int
) -> None:
    greedy = sampled(temperature=0, max_tokens=40, bad_token_ids=(not_a_number,))
    params = sampled(temperature=temperature, n=n, logprobs=2, bad_token_ids=(not_a_number,))
    engine.forget_prefixes()
    alone = engine.generate(PROMPT, greedy).tokens
    assert len(alone) == 40
    compiled = engine.loop.runner.compilations
    good = engine.submit(PROMPT, greedy)
    for _ in range(4):
        engine.step()
    # Longer than a page and than a step, so that pages of NaN are published before the first token is due.
    poisoned = engine.submit([not_a_number, *PROMPT * 4][: 3 * PAGE], params, seed=5)
    engine.run()
    ends = [engine.heard[poisoned, i] for i in range(n)]
    assert [(end.tokens, end.finish_reason) for end in ends] == [([], "error")] * n
    assert engine.heard[good, 0].tokens == alone
    stats = engine.loop.scheduler.refresh_stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
    assert engine.loop.runner.compilations == compiled
    assert engine.generate(PROMPT, greedy).tokens == alone  # on pages that held NaN


def test_pages_without_numbers_are_nobodys_prefix(engine: Harness, not_a_number: int) -> None:
    greedy = sampled(temperature=0, bad_token_ids=(not_a_number,))
    engine.forget_prefixes()
    poisoned = [not_a_number, *PROMPT * 4][: 3 * PAGE]
    for _ in range(2):
        heard = engine.generate(poisoned, greedy)
        assert (heard.finish_reason, heard.cached_tokens) == ("error", 0)
    assert engine.loop.scheduler.pool.num_cached == 0
