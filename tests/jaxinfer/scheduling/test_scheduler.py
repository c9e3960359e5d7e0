"""Single properties of the scheduler that random lives would show only by accident."""

from __future__ import annotations

import gc
import queue
import threading
from typing import Any

import pytest

from jaxinfer.engine import EngineLoop
from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import Drain, Drained, Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling import waiting
from jaxinfer.scheduling.page_pool import IntegrityError, PagePool, PoolExhausted
from jaxinfer.scheduling.request import Request, Sequence
from jaxinfer.scheduling.scheduler import DuplicateRequest, Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import StepPlan, StepResult
from tests.jaxinfer.scheduling.simulator import World


def world(**changes: Any) -> World:
    sizes = {name: changes.pop(name) for name in ("page_size", "num_pages") if name in changes}
    limits = {"max_num_seqs": 2, "max_num_batched_tokens": 8, "max_model_len": 64, "eos_token_ids": (7,), **changes}
    return World(SchedulerLimits(**limits), **sizes)


def order_of_first_tokens(w: World) -> list[str]:
    """Requests by the step in which their first token came."""
    seen: list[str] = []
    for _ in range(500):
        w.step()
        seen += [name for name, _ in w.tokens if name not in seen]
        if w.idle:
            break
    w.check_outputs()
    return seen


def test_first_come_first_served_within_a_priority() -> None:
    w = world(max_num_seqs=1)
    for _ in range(4):
        w.submit((1, 2, 3), max_tokens=3, ignore_eos=True)
    assert order_of_first_tokens(w) == ["r0", "r1", "r2", "r3"]


def test_better_priority_overtakes_and_ageing_ends_it() -> None:
    """One level is worth `ageing` seconds: who has waited longer than that goes before a newcomer of the next level."""
    w = world(max_num_seqs=1, priority_ageing_seconds=2.5)  # the simulated clock ticks one second a submission
    w.submit((1, 2, 3), max_tokens=3, ignore_eos=True, priority=1)  # t=1, order 3.5
    w.submit((1, 2, 3), max_tokens=3, ignore_eos=True)  # t=2, order 2
    w.submit((1, 2, 3), max_tokens=3, ignore_eos=True)  # t=3, order 3
    w.submit((1, 2, 3), max_tokens=3, ignore_eos=True)  # t=4, order 4: the first one has waited long enough
    assert order_of_first_tokens(w) == ["r1", "r2", "r0", "r3"]


def test_nothing_starves_under_a_flood_of_better_requests() -> None:
    w = world(max_num_seqs=1, priority_ageing_seconds=5.0)
    w.submit((1, 2), max_tokens=2, ignore_eos=True, priority=2)
    for _ in range(40):
        w.submit((1, 2), max_tokens=2, ignore_eos=True, priority=0)
        w.step()
        if ("r0", 0) in w.ended:
            break
        w.step()
    w.finish()
    firsts = list(dict.fromkeys(name for name, _ in w.tokens))
    assert firsts.index("r0") <= 11  # 2 levels x 5 s, one arrival a second


def test_decode_rows_are_not_held_up_by_a_long_prompt() -> None:
    w = world(max_num_seqs=2, max_num_batched_tokens=4, num_pages=40)
    w.submit((1, 2), max_tokens=20, ignore_eos=True)
    w.step()
    w.submit(tuple(range(12)) * 3, max_tokens=2, ignore_eos=True)
    for _ in range(10):
        plan = w.step()
        assert any(row.request_id == "r0" for row in plan.rows), "the running request missed a step"
    w.finish()


def test_longest_prefix_is_found_and_counted() -> None:
    w = world(num_pages=40)
    w.submit(tuple(range(10)), max_tokens=1, ignore_eos=True)
    w.finish()
    w.submit((*range(10), 11, 12), max_tokens=1, ignore_eos=True)
    w.finish()
    assert w.scheduler.stats.prefix_hits == 8  # two full pages of 4


def test_duplicate_ids_are_refused_while_alive() -> None:
    w = world()
    w.submit((1,), max_tokens=1)
    with pytest.raises(DuplicateRequest, match="'r0' is in use"):
        w.scheduler.add(w.submitted["r0"])
    w.finish()
    w.scheduler.add(w.submitted["r0"])


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ((1, 2), {"max_tokens": 63}, "max_tokens is 63; with a prompt of 2 tokens at most 62 fit the context of 64"),
        ((1,) * 64, {"max_tokens": 1}, "at most 63 fit the context"),
        ((1,) * 40, {"max_tokens": 20}, "prompt and output need 15 pages of 4 tokens, the pool has 11"),
        ((), {"max_tokens": 1}, "it must hold at least one token"),
        ((1,), {"max_tokens": 4, "min_tokens": 2, "allowed_token_ids": (7,)}, "all of them end the text"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(prompt: tuple[int, ...], params: Any, message: str) -> None:
    w = world()
    with pytest.raises(InvalidRequest, match=message):
        w.submit(prompt, **params)
    assert not w.scheduler.has_unfinished
    w.scheduler.check_integrity()


def test_pool_refuses_misuse() -> None:
    pool = PagePool(4, 8)
    pages = pool.allocate(3)
    with pytest.raises(PoolExhausted, match="1 pages wanted, 0 available"):
        pool.allocate(1)
    pool.release(reversed(pages))
    with pytest.raises(IntegrityError, match="released without an owner"):
        pool.release([pages[0]])
    with pytest.raises(ValueError, match="num_pages is 1"):
        PagePool(1, 8)


def test_equal_hashes_of_different_tokens_do_not_collide() -> None:
    """Content is compared by its token ids. These two pages have equal hashes: hash(-1) == hash(-2)."""
    pool = PagePool(8, 2)
    root = pool.prefixes.root("")
    assert hash((-1, 5)) == hash((-2, 5))
    (page,) = pool.allocate(1)
    pool.publish(page, pool.prefixes.child(root, (-1, 5)))
    assert pool.prefixes.find(root, (-2, 5)) is None
    node = pool.prefixes.find(root, (-1, 5))
    assert node is not None
    assert pool.lookup(node) == page
    assert pool.prefixes.find(pool.prefixes.root("other salt"), (-1, 5)) is None


def test_an_idle_engine_looks_at_totals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between requests nothing costs what the pool is large; a page that is missing is noticed all the same."""
    loop = EngineLoop(Scheduler(SchedulerLimits(2, 8, 64), PagePool(30, 4)), Runner(), None)  # type: ignore[arg-type]
    looked: list[int] = []
    check = PagePool.check_integrity
    monkeypatch.setattr(PagePool, "check_integrity", lambda *args: looked.append(1) or check(*args))

    def serve() -> list[Any]:
        inbox: queue.Queue[Any] = queue.Queue()
        for i in range(3):
            inbox.put(Submit(f"r{i}", (1, 2, 3), SamplingParams(max_tokens=3), 0, 0, float(i)))
        inbox.put(Drain())
        posted: list[Any] = []
        loop._draining = False
        loop.run(inbox, posted.append)
        return posted

    assert isinstance(serve()[-1], Drained)
    assert not looked
    lost = loop.scheduler.pool.allocate(2)
    with pytest.raises(
        IntegrityError, match=r"no request is left, but these are still taken: \{'pages': 2, 'slots': 0"
    ):
        serve()
    assert len(lost) == 2


def test_pins_end_and_are_told_while_nothing_runs() -> None:
    """The engine wakes for the end of a pin, says so, and waits for nothing else."""
    loop = EngineLoop(Scheduler(SchedulerLimits(2, 8, 64), PagePool(30, 4)), Runner(), None)  # type: ignore[arg-type]
    inbox: queue.Queue[Any] = queue.Queue()
    posted: queue.Queue[Any] = queue.Queue()
    inbox.put(Submit("r", (1, 2, 3, 4, 5), SamplingParams(max_tokens=1), 0, 0, 0.0, pins=((5, 0.05),)))
    thread = threading.Thread(target=loop.run, args=(inbox, posted.put))
    thread.start()
    try:
        reports = [posted.get(timeout=10)]
        while reports[-1].pins != ():
            reports.append(posted.get(timeout=10))
        first, *_, last = (report for report in reports if report.pins is not None)
        assert [(of.pins, of.pages, of.longest) for of in first.pins] == [(1, 1, 4)]
        assert (first.stats.pinned_pages, first.stats.pins_made, first.stats.pins_expired) == (1, 1, 0)
        assert (last.stats.pinned_pages, last.stats.pins_made, last.stats.pins_expired) == (0, 1, 1)
        with pytest.raises(queue.Empty):
            posted.get(timeout=0.1)
    finally:
        inbox.put(Drain())
        thread.join(10)
    assert not thread.is_alive()


class Runner:
    """Answers every row with a token."""

    padded_tokens = compilations = 0

    def dispatch(self, plan: StepPlan) -> Any:
        return Done(StepResult([[5]] * len(plan.rows)))


class Done:
    ready = True

    def __init__(self, result: StepResult) -> None:
        self.result = lambda: result


def test_coming_and_going_costs_the_logarithm_of_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0
    order_of = waiting.order_of

    def counting(sequence: Sequence) -> Any:
        nonlocal counted
        counted += 1
        return order_of(sequence)

    monkeypatch.setattr(waiting, "order_of", counting)
    scheduler = Scheduler(SchedulerLimits(1, 8, 64), PagePool(30, 4))
    for i in range(3000):
        scheduler.add(Submit(f"r{i}", (1, 2, 3), SamplingParams(max_tokens=3), 0, i % 5, float(i)))
    for name in ("r2999", "r1000", "r7"):
        counted = 0
        scheduler.abort(name)
        assert counted < 20
    assert scheduler.num_waiting == 3000 - 3
    scheduler.check_integrity()


def test_siblings_share_their_prompt() -> None:
    scheduler = Scheduler(SchedulerLimits(4, 64, 4096), PagePool(300, 16))
    prompt = tuple(range(3000))
    scheduler.add(Submit("r", prompt, SamplingParams(n=64), 0, 0, 0.0))
    sequences = scheduler._requests["r"].sequences
    assert all(sequence.request.prompt is prompt for sequence in sequences)
    assert sum(len(sequence.output_ids) for sequence in sequences) == 0


def test_tokens_of_prompt_and_output() -> None:
    w = world(num_pages=40)
    w.submit((1, 2, 3, 4, 5), max_tokens=9, ignore_eos=True)
    for _ in range(6):
        w.step()
    sequence = w.scheduler._requests["r0"].sequences[0]
    whole = (1, 2, 3, 4, 5, *sequence.output_ids)
    assert sequence.num_known == len(whole) > 7
    for start in range(len(whole)):
        for end in range(start, len(whole) + 1):
            assert sequence.tokens(start, end) == whole[start:end]


def test_an_ended_request_is_gone_without_the_garbage_collector() -> None:
    """In a long-lived engine the collector hardly ever looks at what is old, and a prompt may be long."""
    scheduler = Scheduler(SchedulerLimits(4, 64, 128), PagePool(60, 4))
    gc.collect()
    gc.disable()
    try:
        for name, tokens in (("ends", 2), ("aborted", 9)):
            params = SamplingParams(n=2, max_tokens=tokens)
            scheduler.add(Submit(name, tuple(range(40)), params, 0, 0, 0.0))
        for _ in range(6):
            plan = scheduler.schedule()
            scheduler.update(plan, StepResult([[7] * row.draws for row in plan.rows]))
        assert {request.request_id for request in alive(Request)} == {"aborted"}
        assert len(alive(Sequence)) == 2
        scheduler.abort("aborted")
        assert alive(Request) == alive(Sequence) == []
    finally:
        gc.enable()


def alive(kind: type) -> list[Any]:
    return [thing for thing in gc.get_objects() if isinstance(thing, kind)]
