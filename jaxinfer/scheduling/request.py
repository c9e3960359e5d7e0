"""`Request`, one client's generation on the host, and `Sequence`, one of the n texts it asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxinfer.messages import SequenceAccount, Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PrefixNode

if TYPE_CHECKING:
    from jaxinfer.scheduling.tenants import Tenant


class Request:
    """A submitted generation with its sequences. `order` sorts requests: lower is served first.

    order = arrival + priority * ageing: one level of priority is worth `ageing` seconds of waiting. It never changes,
    so within a priority it is first come first served, and nothing starves, because whoever arrives late enough comes
    after even a low-priority request.
    """

    __slots__ = (
        "arrival",
        "order",
        "params",
        "prompt_len",
        "request_id",
        "salt",
        "seed",
        "sequences",
        "stop_ids",
        "tenant",
    )

    def __init__(
        self, submit: Submit, order: tuple[float, int], stop_ids: frozenset[int], max_total: int, tenant: Tenant
    ) -> None:
        self.request_id = submit.request_id
        self.tenant = tenant
        self.params: SamplingParams = submit.params
        self.prompt_len = len(submit.prompt_token_ids)
        self.seed = submit.seed
        self.arrival = submit.arrival
        self.order = order
        self.salt = submit.cache_salt
        self.stop_ids = stop_ids
        self.sequences = [Sequence(self, i, list(submit.prompt_token_ids), max_total) for i in range(self.params.n)]

    @property
    def finished(self) -> bool:
        return all(sequence.finished for sequence in self.sequences)

    @property
    def live_sequences(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.finished]


class Sequence:
    """One text being generated.

    num_tokens counts the known tokens plus `num_pending` sampled ones that have not reached the host yet (0 or 1);
    num_computed counts those whose KV is written by a step that was dispatched. A step chases num_tokens with
    num_computed; when it catches up it samples. Nothing else distinguishes prefill from decode.

    `epoch` goes up when the sequence ends, so that results still in flight are recognised as stale. `residency` goes up
    whenever its pages are given back, so that a result in flight cannot publish pages that are no longer its own.
    """

    __slots__ = (
        "cached_tokens",
        "charged",
        "chunks",
        "committed",
        "computed_tokens",
        "device_seconds",
        "epoch",
        "finished",
        "index",
        "max_total",
        "min_total",
        "needs_admission",
        "node",
        "num_computed",
        "num_pending",
        "num_tokens",
        "order",
        "padded_tokens",
        "pages",
        "preemptions",
        "prompt_len",
        "regime",
        "request",
        "residency",
        "slot",
        "started",
        "stop_ids",
        "sync",
        "token_ids",
    )

    def __init__(self, request: Request, index: int, token_ids: list[int], max_total: int) -> None:
        self.request = request
        self.index = index
        self.token_ids = token_ids
        self.prompt_len = len(token_ids)
        self.num_tokens = len(token_ids)
        self.num_pending = 0
        self.num_computed = 0
        self.max_total = max_total
        self.min_total = len(token_ids) + request.params.min_tokens
        self.stop_ids = request.stop_ids
        self.order = (*request.order, index)
        self.sync = False  # wants its token on the host before its next step
        self.slot = -1
        self.needs_admission = True  # the device has not been told about it yet
        self.pages: list[int] = []
        self.node: PrefixNode | None = None  # content of the committed pages
        self.committed = 0  # pages whose content is published
        self.regime = 0  # 1: RoPE's long factors (longrope)
        self.cached_tokens = 0
        self.charged = 0  # positions whose computing its tenant was charged for
        self.epoch = 0
        self.residency = 0
        self.preemptions = 0
        self.finished = False
        # For its account:
        self.started = 0.0  # time.monotonic() of its first row
        self.chunks = 0
        self.computed_tokens = 0
        self.padded_tokens = 0.0
        self.device_seconds = 0.0

    @property
    def account(self) -> SequenceAccount:
        return SequenceAccount(
            self.started,
            self.chunks,
            len(self.pages),
            self.preemptions,
            self.computed_tokens,
            self.padded_tokens,
            self.device_seconds,
        )

    @property
    def key(self) -> tuple[str, int]:
        return self.request.request_id, self.index


def order_of(sequence: Sequence) -> tuple[float, int, int]:
    return sequence.order
