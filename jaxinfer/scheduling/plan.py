"""`StepPlan`: what one step computes, decided by the scheduler. Small, plain, picklable; the device side adds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxinfer.sampling_params import SamplingParams


class Admission(NamedTuple):
    """A sequence enters a slot (or starts again in it): everything the device must know from now on.

    start: tokens whose KV the pages already hold (prefix hit). history: those tokens, only when penalties need them.
    """

    start: int
    prompt_len: int
    pages: tuple[int, ...]
    regime: int
    params: SamplingParams
    seed: int
    index: int
    stop_ids: tuple[int, ...]
    history: tuple[int, ...]


class PlanRow(NamedTuple):
    """`length` tokens of one sequence from position `start`; it samples when that catches up with its tokens.

    token_ids: the known ids, or empty when the only one is the token sampled by the step before, still on the device.
    pages: pages appended to the row's table since its last row (page tables are append-only between admissions).
    targets: for prompt log-probabilities, the token after each of the row's tokens (fewer at the prompt's end).
    """

    request_id: str
    index: int
    epoch: int
    residency: int
    slot: int
    start: int
    length: int
    samples: bool
    token_ids: tuple[int, ...]
    pages: tuple[int, ...]
    admission: Admission | None
    targets: tuple[int, ...]


@dataclass(slots=True)
class StepPlan:
    rows: list[PlanRow]
    num_tokens: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows)


class StepResult(NamedTuple):
    """What came back for the plan's rows, as plain lists in row order.

    tokens[i] counts only where the row samples. The log-probability fields are None when no row asked for them;
    top_* hold MAX_LOGPROBS columns. prompt_* are indexed by token position within the step.
    """

    tokens: list[int]
    logprobs: list[float] | None = None
    ranks: list[int] | None = None
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None
    prompt_logprobs: list[float] | None = None
    prompt_ranks: list[int] | None = None
    prompt_top_ids: list[list[int]] | None = None
    prompt_top_logprobs: list[list[float]] | None = None
