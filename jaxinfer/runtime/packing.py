"""From `StepPlan` to the arrays of a bucket: pure numpy.

The packer mirrors what changes rarely (sampling parameters, page tables) by slot, so that a steady decode step gathers
a few rows instead of touching every request. Every array it returns is fresh and is never written again: device_put
aliases aligned numpy memory on CPU and reads it late on GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxinfer.runtime.buckets import Bucket
from jaxinfer.runtime.inputs import AdmitInputs, StepInputs
from jaxinfer.runtime.sampling import MAX_BIAS, MAX_STOP_IDS, SamplingParamsRows
from jaxinfer.sampling_params import DEVICE_COLUMNS, SamplingParams, device_values
from jaxinfer.scheduling.plan import Admission, StepPlan


class Packer:
    """Packs plans for `max_num_seqs` slots and tables of `max_pages` pages. One per runner; not thread-safe."""

    def __init__(self, max_num_seqs: int, max_pages: int, vocab_size: int, admit_tokens: int) -> None:
        self.spare_slot = max_num_seqs
        self.vocab_size = vocab_size
        self.admit_tokens = admit_tokens
        slots = max_num_seqs + 1
        self._params: dict[str, Any] = {
            name: np.full(slots, column.neutral, column.dtype) for name, column in DEVICE_COLUMNS.items()
        }
        self._prompt_lens = np.zeros(slots, np.int32)
        self._prompt_logprobs = np.full(slots, -1, np.int32)
        self._regimes = np.zeros(slots, np.int32)
        self._page_tables = np.zeros((slots, max_pages), np.int32)

    def pack(self, plan: StepPlan, bucket: Bucket) -> StepInputs:
        """The plan in the bucket's shapes. The plan must fit: `plan.num_tokens <= bucket.tokens`."""
        num_rows, num_tokens = bucket.rows, bucket.tokens
        slots = np.full(num_rows, self.spare_slot, np.int32)
        query_lens = np.zeros(num_rows, np.int32)
        start_at = np.full(num_rows, -1, np.int32)
        samples = np.zeros(num_rows, np.bool_)
        ids: list[int] = []
        scored: list[tuple[int, tuple[int, ...]]] = []
        for i, row in enumerate(plan.rows):
            if row.admission is not None:
                self._admit(row.slot, row.admission)
                start_at[i] = row.admission.start
            for write in row.writes:
                self._page_tables[row.slot, write.position] = write.page
            if row.targets:
                scored.append((len(ids), row.targets))
            ids += row.token_ids or (-1,)
        count = len(plan.rows)
        slots[:count] = [row.slot for row in plan.rows]
        query_lens[:count] = [row.length for row in plan.rows]
        samples[:count] = [row.draws > 0 for row in plan.rows]
        token_ids = np.zeros(num_tokens, np.int32)
        token_ids[: len(ids)] = ids
        targets = np.zeros(num_tokens, np.int32)
        for offset, values in scored:
            targets[offset : offset + len(values)] = values
        return StepInputs(
            token_ids=token_ids,
            targets=targets,
            score_prompt=np.bool_(bool(scored)),
            slots=slots,
            query_lens=query_lens,
            start_at=start_at,
            samples=samples,
            prompt_lens=self._prompt_lens[slots],
            regimes=self._regimes[slots],
            page_tables=self._page_tables[slots],
            params=SamplingParamsRows(**{name: values[slots] for name, values in self._params.items()}),
        )

    def _admit(self, slot: int, admission: Admission) -> None:
        params = admission.params
        for name, value in device_values(params, admission.seed, admission.index).items():
            self._params[name][slot] = value
        self._prompt_lens[slot] = admission.prompt_len
        self._prompt_logprobs[slot] = -1 if params.prompt_logprobs is None else params.prompt_logprobs
        self._regimes[slot] = admission.regime
        self._page_tables[slot] = 0
        (pages,) = admission.tables
        self._page_tables[slot, : len(pages)] = pages

    def most_logprobs(self, plan: StepPlan) -> tuple[int, int]:
        """The most alternatives that the plan's sampled tokens and its prompt positions want; -1 where none do."""
        wanted = self._params["num_logprobs"]
        sampled = max((int(wanted[row.slot]) for row in plan.rows if row.draws), default=-1)
        prompt = max((int(self._prompt_logprobs[row.slot]) for row in plan.rows if row.targets), default=-1)
        return sampled, prompt

    def pack_admissions(self, plan: StepPlan) -> list[AdmitInputs]:
        """Calls of the admission executable that must run before the plan's step, usually none."""
        calls: list[AdmitInputs] = []
        for row in plan.rows:
            if row.admission is not None and needs_tables(row.admission.params):
                calls += self._admit_calls(row.slot, row.admission)
        return calls

    def _admit_calls(self, slot: int, admission: Admission) -> list[AdmitInputs]:
        bias_ids, bias_values = bias_table(admission.params, self.vocab_size)
        stop_ids = np.full(MAX_STOP_IDS, self.vocab_size, np.int32)
        stop_ids[: len(admission.stop_ids)] = admission.stop_ids
        calls = []
        width = self.admit_tokens
        for offset in range(0, max(1, len(admission.history)), width):
            chunk = admission.history[offset : offset + width]
            token_ids = np.zeros(width, np.int32)
            token_ids[: len(chunk)] = chunk
            calls.append(
                AdmitInputs(
                    slot=np.int32(slot),
                    token_ids=token_ids,
                    count=np.int32(len(chunk)),
                    offset=np.int32(offset),
                    prompt_len=np.int32(admission.prompt_len),
                    clear=np.bool_(offset == 0),
                    bias_ids=bias_ids,
                    bias_values=bias_values,
                    allow_only=np.bool_(admission.params.allowed_token_ids is not None),
                    stop_ids=stop_ids,
                )
            )
        return calls


def needs_tables(params: SamplingParams) -> bool:
    """Whether sampling reads the per-slot tables, so that an admission must fill them."""
    return params.has_penalties or params.has_bias or params.min_tokens > 0


def bias_table(params: SamplingParams, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, values), each (MAX_BIAS,), unused entries naming `vocab_size`. Banned tokens carry -inf.

    With allowed ids the table lists exactly those, with their bias; a listed token that is also banned stays banned.
    """
    table: dict[int, float] = dict(params.logit_bias)
    if params.allowed_token_ids is not None:
        table = {token: params.logit_bias.get(token, 0.0) for token in params.allowed_token_ids}
    table.update(dict.fromkeys(params.bad_token_ids, -np.inf))
    ids = np.full(MAX_BIAS, vocab_size, np.int32)
    values = np.zeros(MAX_BIAS, np.float32)
    ids[: len(table)] = list(table)
    values[: len(table)] = list(table.values())
    return ids, values
