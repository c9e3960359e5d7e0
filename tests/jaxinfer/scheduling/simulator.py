"""A device made of Python lists: runs plans on symbolic KV pages, so that the host's bookkeeping can be checked.

Every kv slot holds the whole prefix whose token it stands for, and the number of the page table that wrote it. Reading
a sequence through each of its page tables, as far as the layers of that table see, must give back exactly its tokens,
each under its own salt and RoPE variant; the drawn token is a function of what was read. A page that was given away,
shared wrongly, or published too early is therefore noticed. Tables must be what the host has, and hold no more than
windows allow.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from jaxinfer.messages import SequenceOutput, Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import NULL_PAGE, PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import NO_TOKEN, PlanRow, Scores, StepPlan, StepResult
from tests.jaxinfer.scheduling.grammar import ArithmeticGuide, complete_after, forced_after

VOCAB = 13


def next_token(tokens: tuple[int, ...], seed: int, index: int, rope_variant: int) -> int:
    """The simulated model: any change of any token, of the seed or of the RoPE variant changes the answer."""
    digest = hashlib.blake2b(repr((tokens, seed, index, rope_variant)).encode(), digest_size=2).digest()
    return int.from_bytes(digest, "big") % VOCAB


@dataclass
class _Slot:
    """What the device remembers of a slot."""

    tables: list[list[int]]
    last_token: int
    num_computed: int
    salt: str
    rope_variant: int
    seed: int
    index: int
    prompt_len: int
    counted: list[int]


class SimulatedDevice:
    """Runs plans in dispatch order. `salts` maps request ids to cache salts (the real device needs none), `guided` has
    those that follow a grammar.

    fail_every: of the rows that draw each so manieth has no token; 0 is never. A row that may draw several tokens gives
    0 to all of them, in turns.
    """

    def __init__(self, limits: SchedulerLimits, page_size: int, num_pages: int) -> None:
        self.limits = limits
        self.page_size = page_size
        self.kv: list[list[Any]] = [[None] * page_size for _ in range(num_pages)]
        self.specs = [group.spec for group in limits.cache_groups.groups for _ in group.tables]
        self.slots: dict[int, _Slot] = {}
        self.salts: dict[str, str] = {}
        self.guided: set[str] = set()
        self.fail_every = self._sampled = 0

    def run(self, plan: StepPlan) -> StepResult:
        assert len({row.slot for row in plan.rows}) == len(plan.rows), "two rows share a slot"
        assert sum(row.length for row in plan.rows) <= self.limits.max_num_batched_tokens, "over the token budget"
        assert len(plan.rows) <= self.limits.max_num_seqs
        for row in plan.rows:
            self._place(row)
        # All writes of a step come before all reads: rows of one step must not depend on each other.
        prefixes = [self._write(row) for row in plan.rows]
        tokens = [self._read_and_sample(row, prefix) for row, prefix in zip(plan.rows, prefixes, strict=True)]
        total = sum(row.length for row in plan.rows)
        return StepResult(tokens, _scores(sum(map(len, tokens))), _scores(total))

    def _place(self, row: PlanRow) -> None:
        admission = row.admission
        if admission is not None:
            assert row.start == admission.start
            self.slots[row.slot] = _Slot(
                [list(table) for table in admission.tables],
                -1,
                admission.start,
                self.salts[row.request_id],
                admission.rope_variant,
                admission.seed,
                admission.index,
                admission.prompt_len,
                list(admission.history),
            )
        else:
            for table, position, page in row.writes:
                assert page != NULL_PAGE or self.specs[table].window is not None
                pages = self.slots[row.slot].tables[table]
                pages += [NULL_PAGE] * (position + 1 - len(pages))
                pages[position] = page

    def _write(self, row: PlanRow) -> tuple[int, ...]:
        slot = self.slots[row.slot]
        assert slot.num_computed == row.start, "the plan and the device disagree about what is computed"
        ids = row.token_ids or (slot.last_token,)
        assert len(ids) == row.length
        assert all(token >= 0 for token in ids), "a token that nobody knows"
        prefix = self._context(slot, row.start, row.start)
        for i, token in enumerate(ids):
            position = row.start + i
            prefix = (*prefix, token)
            for table, pages in enumerate(slot.tables):
                page = pages[position // self.page_size]
                assert page != NULL_PAGE, "a real token was written to the null page"
                self.kv[page][position % self.page_size] = (table, slot.salt, slot.rope_variant, prefix)
        slot.num_computed += row.length
        slot.counted += ids
        return prefix

    def _context(self, slot: _Slot, start: int, end: int) -> tuple[int, ...]:
        """Reads back, through every page table, what queries from `start` on see of the `end` tokens that are written,
        checking that each kv slot holds this very prefix."""
        if not end:
            return ()
        # Through a table that has it: with a window of one token a query sees nothing that was before it.
        table = next(i for i, spec in enumerate(self.specs) if spec.first_kept(start) < end)
        newest = self.kv[slot.tables[table][(end - 1) // self.page_size]][(end - 1) % self.page_size]
        assert newest is not None, "read a kv slot that nobody wrote"
        prefix: tuple[int, ...] = newest[-1]
        assert len(prefix) == end, "read KV of another position"
        for table, (pages, spec) in enumerate(zip(slot.tables, self.specs, strict=True)):
            for position in range(spec.first_kept(start), end):
                entry = self.kv[pages[position // self.page_size]][position % self.page_size]
                assert entry is not None, "read a kv slot that nobody wrote"
                assert entry[:-1] == (table, slot.salt, slot.rope_variant), (
                    "read KV of another table, salt or RoPE variant"
                )
                assert entry[-1] == prefix[: position + 1], "read KV of another prefix"
        return prefix

    def _read_and_sample(self, row: PlanRow, prefix: tuple[int, ...]) -> list[int]:
        slot = self.slots[row.slot]
        assert self._context(slot, row.start, row.start + row.length) == prefix, "another row of the step wrote here"
        token = next_token(prefix, slot.seed, slot.index, slot.rope_variant)
        if not row.draws:
            return [token]  # counts for nothing
        if row.request_id in self.guided:
            token = next(iter(forced_after(prefix[slot.prompt_len :], VOCAB)), token)
        slot.last_token = token
        self._sampled += 1
        if self.fail_every and self._sampled % self.fail_every == 0:
            return [NO_TOKEN]
        if self.limits.draws == 1:
            return [token]
        return self._draw_several(slot, prefix, min(row.draws, self._sampled * 7 % (self.limits.draws + 1)))

    def _draw_several(self, slot: _Slot, prefix: tuple[int, ...], count: int) -> list[int]:
        """Stops where the host must change the RoPE variant first."""
        tokens: list[int] = []
        while len(tokens) < count and rope_variant_of(len(prefix), self.limits) == slot.rope_variant:
            tokens.append(next_token(prefix, slot.seed, slot.index, slot.rope_variant))
            prefix = (*prefix, tokens[-1])
        if not tokens:
            slot.num_computed -= 1
            slot.counted.pop()
        return tokens


def rope_variant_of(length: int, limits: SchedulerLimits) -> int:
    return int(limits.longrope_border is not None and length > limits.longrope_border)


def _scores(count: int) -> Scores:
    return Scores([0.0] * count, [1] * count, [[0] * 20] * count, [[0.0] * 20] * count)


def expected_tokens(submit: Submit, index: int, limits: SchedulerLimits, guided: bool = False) -> tuple[list[int], str]:
    """What a sequence generates when it runs alone, from first principles."""
    params = submit.params
    tokens, out = list(submit.prompt_token_ids), []
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(limits.eos_token_ids))
    limit = limits.max_model_len if params.max_tokens is None else len(tokens) + params.max_tokens
    while True:
        rope_variant = rope_variant_of(len(tokens), limits)
        token = next_token(tuple(tokens), submit.seed, index, rope_variant)
        if guided:
            token = next(iter(forced_after(tuple(out), VOCAB)), token)
        tokens.append(token)
        out.append(token)
        if token in stops and len(out) > params.min_tokens:
            return out, "stop"
        if guided and complete_after(tuple(out), VOCAB):
            return out, "stop"
        if len(tokens) >= limit:
            return out, "length"


class World:
    """Scheduler, simulated device and oracle, with one step in flight."""

    def __init__(self, limits: SchedulerLimits, *, page_size: int = 4, num_pages: int = 12) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits, PagePool(num_pages, page_size), clock=lambda: self.clock)
        self.device = SimulatedDevice(limits, page_size, num_pages)
        self.submitted: dict[str, Submit] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.ended: dict[tuple[str, int], str] = {}
        self.in_flight: tuple[StepPlan, StepResult] | None = None
        self.clock = 0.0
        self.plans: list[StepPlan] = []

    def submit(
        self,
        prompt: tuple[int, ...],
        *,
        salt: str = "",
        priority: int = 0,
        seed: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        guided: bool = False,
        pins: tuple[tuple[int, float], ...] = (),
        pin_answer: float = 0.0,
        **params: Any,
    ) -> str:
        request_id = f"r{len(self.submitted)}"
        self.clock += 1.0
        submit = Submit(request_id, prompt, SamplingParams(**params), seed, priority, self.clock, salt, tenant, weight)
        submit = submit._replace(pins=pins, pin_answer=pin_answer)
        self.device.salts[request_id] = salt
        guides = [ArithmeticGuide(VOCAB) for _ in range(submit.params.n)] if guided else []
        self.scheduler.add(submit, guides)
        if guided:
            self.device.guided.add(request_id)
        self.submitted[request_id] = submit
        return request_id

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.scheduler.abort(request_id, index)
        self._take(self.scheduler.take_ended())
        self.scheduler.check_integrity()

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule()
        self.plans.append(plan)
        for of in self.scheduler.pins._tenants.values():
            assert all(pin.expires > self.clock for pin in of.pins.values()), "a pin outlives its time"
        self.scheduler.check_integrity(plan)
        result = self.device.run(plan) if plan else None
        for row in plan.rows:
            self._check_tables(row)
        done, self.in_flight = self.in_flight, (plan, result) if result is not None else None
        if done is not None:
            self._take(self.scheduler.update(*done).sequences)
            self.scheduler.check_integrity()
        self._jump(plan)
        return plan

    def _jump(self, plan: StepPlan) -> None:
        """As the engine does when all tokens before the plan's are known."""
        for _, sequence in self.scheduler.guided(plan):
            assert isinstance(sequence.guide, ArithmeticGuide)
            sequence.guide.look()
            output = self.scheduler.jump(sequence)
            if output is not None:
                self._take([output])
            self.scheduler.check_integrity()

    def _check_tables(self, row: PlanRow) -> None:
        """The device has the host's page tables, and windows bound what they hold."""
        size, on_device = self.device.page_size, self.device.slots[row.slot].tables
        sequence = self.scheduler._requests[row.request_id].sequences[row.index]
        assert on_device == list(map(list, self.scheduler.kv.table_columns(sequence))), "page tables differ"
        chunk = row.length if row.length == 1 else self.limits.max_num_batched_tokens
        for table, spec in zip(on_device, self.device.specs, strict=True):
            if spec.window is not None and spec.first_kept(self.limits.max_model_len - 1) >= size:
                pages = sum(page != NULL_PAGE for page in table)
                most = math.ceil(spec.window / size) + math.ceil(chunk / size) + (1 if chunk == 1 else 2)
                assert pages <= most, f"{table} holds {pages} pages"

    def _take(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            key = (output.request_id, output.index)
            assert key not in self.ended, "news of a sequence that had ended"
            if output.token_ids:
                self.tokens.setdefault(key, []).extend(output.token_ids)
            if output.finish_reason is not None:
                self.ended[key] = output.finish_reason

    @property
    def idle(self) -> bool:
        return self.in_flight is None and not self.scheduler.has_unfinished

    def finish_requests(self, max_steps: int = 5000) -> None:
        """Runs until no request is left; a scheduler that stops making progress fails here."""
        for _ in range(max_steps):
            if self.idle:
                break
            self.step()
        assert self.idle, "requests were left behind"

    def finish(self) -> None:
        """The same, and everything must have come back."""
        self.finish_requests()
        self.check_outputs()
        pool = self.scheduler.pool
        assert pool.available == pool.usable_pages, "pages leaked"
        self.clock += 1000.0
        self.scheduler.pins.expire()
        self.scheduler.check_integrity()
        assert (self.scheduler.pins.stats.pages, pool._pinned, any(pool._pins)) == (0, 0, False), "pins leaked"

    def check_outputs(self) -> None:
        """Every sequence that ended by itself has exactly the oracle's tokens; aborted ones a prefix of them."""
        for request_id, submit in self.submitted.items():
            for index in range(submit.params.n):
                key = (request_id, index)
                wanted, reason = expected_tokens(submit, index, self.limits, request_id in self.device.guided)
                got = self.tokens.get(key, [])
                ended = self.ended.get(key)
                if ended in ("stop", "length"):
                    assert (got, ended) == (wanted, reason), f"{key}: {got} {ended}, alone it is {wanted} {reason}"
                else:
                    assert got == wanted[: len(got)], f"{key}: {got} is not a prefix of {wanted}"
                if ended is None:
                    assert not self.idle, f"{key} never ended"
