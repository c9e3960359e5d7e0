"""`StepPlan`: what one step computes, decided by the scheduler. Small, plain and picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxinfer.sampling_params import SamplingParams

NULL_PAGE = 0  # of every pool: it holds nothing
NO_TOKEN = -1  # of a row without a finite logit


class Admission(NamedTuple):
    """A sequence enters a slot (or starts again in it): everything the device must know from now on.

    start: tokens whose KV the pages already hold (prefix hit). tables: one for each page table, from its logical page 0
    on, the null page where nothing is kept. history: the tokens before `start`, only when penalties need them.
    """

    start: int
    prompt_len: int
    tables: tuple[tuple[int, ...], ...]
    rope_variant: int
    params: SamplingParams
    seed: int
    index: int  # type: ignore[assignment]  # shadows tuple.index
    stop_ids: tuple[int, ...]
    history: tuple[int, ...]


class TableWrite(NamedTuple):
    """Logical page `position` of a slot's page table number `table` is `page` from this step on; the null page where
    it was given back."""

    table: int
    position: int
    page: int


class PlanRow(NamedTuple):
    """`length` tokens of one sequence from position `start`; it draws when that catches up with its tokens.

    draws: tokens drawn at the row's end, at most; 0 when it does not catch up. token_ids: the known ids, or empty when
    the only one is the token drawn by the step before, still on the device. writes: what changed in the slot's page
    tables since its last row; none beside an admission, which has all of them.
    targets: for prompt log-probabilities, the token after each of the row's tokens (fewer at the prompt's end).
    """

    request_id: str
    index: int  # type: ignore[assignment]  # shadows tuple.index
    run_epoch: int
    kv_epoch: int
    slot: int
    start: int
    length: int
    draws: int
    token_ids: tuple[int, ...]
    writes: tuple[TableWrite, ...]
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
    """What came back for the plan's rows, as plain lists in row order.

    tokens: of every row those that are accepted, at most as many as it draws; they count only where it draws. Where
    none is, the row's last token counts as not computed, on the device too. The last is NO_TOKEN where a row had no
    finite logit. scores: one entry for each token in `tokens`, None when no row asked. prompt_scores: by token position
    within the step.
    """

    tokens: list[list[int]]
    scores: Scores | None = None
    prompt_scores: Scores | None = None
