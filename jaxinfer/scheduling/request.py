"""`Request`, one client's generation on the host, and `Sequence`, one of the n texts it asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from jaxinfer.messages import SequenceAccount, Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.group_hit import GroupHit
from jaxinfer.scheduling.prefix_hit import PrefixHit
from jaxinfer.scheduling.prefix_table import PrefixNode
from jaxinfer.scheduling.step_plan import TableWrite
from jaxinfer.scheduling.tenant import Tenant


class Guide(Protocol):
    """What a sequence's tokens must be let through by (`jaxinfer/constraints/matching.py`)."""

    error: str  # why it lets nothing through any more; "" while it does
    forced: deque[int]  # what comes next whatever the model says, as far as it is known
    forbids: bool  # whether it can leave no token, without an error of its own

    def accept(self, token: int) -> None:
        """The sequence's next token."""
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        ...

    @property
    def done(self) -> bool:
        """Whether anything may follow, to the end, so that nobody need ask any more."""
        ...

    def ends(self, token: int) -> bool:
        """Whether it is an end token, not text."""
        ...


class Request:
    """A submitted generation with its sequences. `order` sorts requests: lower is served first.

    order = arrival + priority * ageing: one level of priority is worth `ageing` seconds of waiting. It never changes,
    so within a priority it is first come first served, and nothing starves, because whoever arrives late enough comes
    after even a low-priority request.
    """

    __slots__ = (
        "arrival",
        "banned_ids",
        "interval",
        "order",
        "params",
        "parked",
        "pin_answer",
        "pins",
        "prompt",
        "prompt_len",
        "request_id",
        "salt",
        "seed",
        "sequences",
        "stop_ids",
        "tenant",
        "unfinished",
    )

    def __init__(
        self,
        submit: Submit,
        order: tuple[float, int],
        stop_ids: frozenset[int],
        banned_ids: tuple[int, ...],
        max_total: int,
        tenant: Tenant[Sequence],
        guides: Iterable[Guide] = (),
    ) -> None:
        self.request_id = submit.request_id
        self.tenant = tenant
        self.params: SamplingParams = submit.params
        self.prompt = submit.prompt_token_ids
        self.prompt_len = len(submit.prompt_token_ids)
        self.seed = submit.seed
        self.arrival = submit.arrival
        self.order = order
        self.salt = submit.cache_salt
        self.pin_answer = submit.pin_answer
        # The whole prompt of those too: the answer may take long, or its end may be another than the next prompt's.
        whole = ((self.prompt_len, submit.pin_answer),) if submit.pin_answer else ()
        self.pins = tuple(sorted((*submit.pins, *whole)))
        # Log-probabilities are read from the step that made them.
        self.interval = 1 if submit.params.logprobs is not None else submit.interval
        self.stop_ids = stop_ids
        self.banned_ids = banned_ids  # until min_tokens
        self.unfinished = self.params.n
        self.parked: list[Sequence] = []  # waiting for the first sequence's pages, and nobody's turn until then
        self.sequences = [Sequence(self, i, max_total) for i in range(self.params.n)]
        for sequence, guide in zip(self.sequences, guides, strict=False):
            sequence.guide = guide

    @property
    def finished(self) -> bool:
        return not self.unfinished

    @property
    def live_sequences(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.finished]


class Sequence:
    """One text being generated.

    num_tokens counts the known tokens plus `num_pending` drawn ones that have not reached the host yet (0, or as many
    as a row draws; fewer may be accepted); num_computed counts those whose KV is written by a step that was dispatched.
    A step chases num_tokens with num_computed; when it catches up it draws. Nothing else distinguishes prefill from
    decode.

    `run_epoch` goes up when the sequence ends, so that results still in flight are recognised as stale. `kv_epoch` goes
    up whenever its pages are given back, so that a result in flight cannot publish pages that are no longer its own.
    """

    __slots__ = (
        "cached_tokens",
        "capacity",
        "charged",
        "chunks",
        "committed",
        "computed_tokens",
        "device_seconds",
        "finished",
        "first",
        "foretold",
        "guide",
        "held",
        "hit",
        "index",
        "kv_epoch",
        "leaves_at",
        "left_behind",
        "max_total",
        "min_total",
        "needs_admission",
        "next_pin",
        "nodes",
        "num_computed",
        "num_pending",
        "num_tokens",
        "order",
        "output_ids",
        "padded_tokens",
        "pinned_tokens",
        "preemptions",
        "prompt_len",
        "request",
        "rope_variant",
        "run_epoch",
        "slot",
        "started",
        "stop_ids",
        "sync",
        "tables",
        "told",
    )

    def __init__(self, request: Request, index: int, max_total: int) -> None:
        self.request = request
        self.index = index
        self.output_ids: list[int] = []  # after the request's prompt, which its sequences share
        self.told = 0  # of those, how many were told to whoever asked
        self.prompt_len = request.prompt_len
        self.num_tokens = request.prompt_len
        self.num_pending = 0
        self.num_computed = 0
        self.max_total = max_total
        self.min_total = request.prompt_len + request.params.min_tokens
        self.stop_ids = request.stop_ids
        self.order = (*request.order, index)
        self.guide: Guide | None = None
        self.foretold = False  # its token that is on its way is known already, and does not count as pending
        self.sync = False  # wants its token on the host before its next step
        self.slot = -1
        self.needs_admission = True  # the device has not been told about it yet
        self.tables: list[list[int]] = []  # of each group of layers its pages; see KVManager
        self.capacity = 0  # tokens that those have room for
        self.held = 0  # pages of all tables together
        self.first: list[int] = []  # of each group, the first page that it has not left behind
        self.leaves_at = 0  # where its next row must begin for it to leave more behind
        self.left_behind: list[TableWrite] = []  # what the device is not told yet of those before it
        self.nodes: list[PrefixNode | None] = []  # of each group, content of the last published page
        self.committed = 0  # pages whose content is published in all groups, by steps that have returned
        self.hit: PrefixHit | GroupHit | None = None  # while it waits: what is known of its prefix
        self.next_pin = 0  # of its request's pins, the first that it has not reached
        self.pinned_tokens = 0  # of its prompt
        self.rope_variant = 0  # 1: RoPE's long factors (longrope)
        self.cached_tokens = 0
        self.charged = 0  # positions whose computing its tenant was charged for
        self.run_epoch = 0
        self.kv_epoch = 0
        self.preemptions = 0
        self.finished = False
        # For its account:
        self.started = 0.0  # time.monotonic() of its first row
        self.chunks = 0
        self.computed_tokens = 0
        self.padded_tokens = 0.0
        self.device_seconds = 0.0

    @property
    def num_known(self) -> int:
        """Tokens whose ids are here: all but those pending."""
        return self.prompt_len + len(self.output_ids)

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """The known ids at positions start to end."""
        split = self.prompt_len
        if end <= split:
            return self.request.prompt[start:end]
        if start >= split:
            return tuple(self.output_ids[start - split : end - split])
        return self.request.prompt[start:] + tuple(self.output_ids[: end - split])

    def tell(self) -> tuple[int, ...]:
        """The tokens that were not told yet; from now on they are."""
        told, self.told = self.told, len(self.output_ids)
        return tuple(self.output_ids[told:])

    @property
    def account(self) -> SequenceAccount:
        return SequenceAccount(
            self.started,
            self.chunks,
            self.held,
            self.preemptions,
            self.computed_tokens,
            self.padded_tokens,
            self.device_seconds,
        )

    @property
    def key(self) -> tuple[str, int]:
        return self.request.request_id, self.index
