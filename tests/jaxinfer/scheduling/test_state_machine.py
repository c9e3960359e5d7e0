"""Arrivals, aborts, finishes, preemptions and in-flight results in any order, on tiny pools, against an oracle."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jaxinfer.errors import InvalidRequest
from jaxinfer.scheduling.scheduler import SchedulerLimits
from tests.jaxinfer.scheduling.episodes import LAYERS, groups_of
from tests.jaxinfer.scheduling.simulator import VOCAB, World

# Prompts are cut from few streams, so that prefixes are shared often.
STREAMS = [tuple((i * k + k) % VOCAB for i in range(40)) for k in (1, 2, 5)]


class SchedulerMachine(RuleBasedStateMachine):
    """Random clients of one scheduler."""

    @initialize(
        sequences=st.integers(3, 23),
        page_size=st.sampled_from([1, 2, 4]),
        rows=st.integers(1, 4),
        budget=st.integers(4, 16),
        border=st.sampled_from([None, None, 9]),
        caching=st.booleans(),
        draws=st.sampled_from([1, 1, 1, 2, 3]),
        layers=st.sampled_from(["uniform", *LAYERS]),
        pinned=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def start(
        self,
        sequences: int,
        page_size: int,
        rows: int,
        budget: int,
        border: int | None,
        caching: bool,
        draws: int,
        layers: str,
        pinned: float,
    ) -> None:
        limits = SchedulerLimits(
            max_num_seqs=rows,
            max_num_batched_tokens=budget,
            max_model_len=32,
            eos_token_ids=(7,),
            longrope_border=border,
            priority_ageing_seconds=3.0,
            enable_prefix_caching=caching,
            draws=draws,
            cache_groups=groups_of(layers),
            max_pinned_ratio=pinned,
        )
        self.world = World(limits, page_size=page_size, num_pages=1 + sequences * limits.cache_groups.num_tables)

    @rule(
        stream=st.sampled_from(STREAMS),
        length=st.integers(1, 20),
        max_tokens=st.integers(1, 12),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "tenant"]),
        seed=st.integers(0, 3),
        ignore_eos=st.booleans(),
        min_tokens=st.integers(0, 3),
        prompt_logprobs=st.sampled_from([None, None, None, 1]),
        tenant=st.sampled_from(["", "", "a", "b"]),
        weight=st.sampled_from([1.0, 1.0, 0.5, 3.0]),
        guided=st.sampled_from([False, False, True]),
        logprobs=st.sampled_from([None, None, None, 0]),
        pins=st.lists(st.tuples(st.integers(1, 20), st.sampled_from([2.0, 30.0])), max_size=2).map(tuple),
        pin_answer=st.sampled_from([0.0, 0.0, 5.0]),
    )
    def submit(
        self, stream: tuple[int, ...], length: int, max_tokens: int, min_tokens: int, guided: bool, **params: object
    ) -> None:
        guided = guided and self.world.limits.draws == 1
        try:
            least = min(min_tokens, max_tokens)
            self.world.submit(stream[:length], max_tokens=max_tokens, min_tokens=least, guided=guided, **params)
        except InvalidRequest as error:
            assert error.field in ("max_tokens", "prompt")  # does not fit this tiny pool or context

    @rule(which=st.integers(0, 50), index=st.sampled_from([None, None, 0, 1]))
    def abort(self, which: int, index: int | None) -> None:
        if self.world.submitted:
            self.world.abort(f"r{which % len(self.world.submitted)}", index)

    @rule(which=st.integers(0, 50))
    def demand_sync(self, which: int) -> None:
        """Some sequences want every token on the host before their next step."""
        for request in list(self.world.scheduler._requests.values())[: which % 3]:
            for sequence in request.sequences:
                sequence.sync = True

    @rule()
    def forget(self) -> None:
        self.world.scheduler.pool.clear_cache()

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()

    @invariant()
    def books_add_up(self) -> None:
        if hasattr(self, "world"):
            self.world.scheduler.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
