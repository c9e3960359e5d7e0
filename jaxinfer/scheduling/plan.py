"""`StepPlan`: what one step computes, decided by the scheduler. Small, plain and picklable."""

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
    index: int  # type: ignore[assignment]  # shadows tuple.index
    stop_ids: tuple[int, ...]
    history: tuple[int, ...]


class PlanRow(NamedTuple):
    """`length` tokens of one sequence from position `start`; it samples when that catches up with its tokens.

    token_ids: the known ids, or empty when the only one is the token sampled by the step before, still on the device.
    pages: pages appended to the row's table since its last row (page tables are append-only between admissions).
    targets: for prompt log-probabilities, the token after each of the row's tokens (fewer at the prompt's end).
    """

    request_id: str
    index: int  # type: ignore[assignment]  # shadows tuple.index
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


class Scores(NamedTuple):
    """Log-probabilities as lists with one entry per row or position; top_* hold as many columns as a row
    of the step asked for."""

    logprobs: list[float]
    ranks: list[int]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]


class StepResult(NamedTuple):
    """What came back for the plan's rows, as plain lists in row order; tokens[i] counts only where row i samples.

    scores: of the sampled tokens, None when no row asked. prompt_scores: by token position within the step.
    """

    tokens: list[int]
    scores: Scores | None = None
    prompt_scores: Scores | None = None
