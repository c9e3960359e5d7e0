"""From `StepPlan` to the arrays of a bucket: pure numpy.

What changes rarely (sampling parameters, page tables) is sent when a slot is admitted and remembered by the device, so
that a decode step sends a few words a row, in one array. Every array is fresh and is never written again: device_put
aliases aligned numpy memory on CPU and reads it late on GPU.
"""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from jaxinfer.runtime.buckets import Bucket
from jaxinfer.runtime.inputs import ADMISSIONS, AdmitInputs, SlotSizes, StepLayout, TableInputs, neutral_settings
from jaxinfer.runtime.sampling import MAX_BIAS, MAX_STOP_IDS
from jaxinfer.sampling_params import SamplingParams, device_values
from jaxinfer.scheduling.step_plan import Admission, StepPlan


class Packer:
    """Packs plans, in the order in which they are dispatched. One per runner; not thread-safe."""

    def __init__(self, sizes: SlotSizes, vocab_size: int, admit_tokens: int) -> None:
        self.sizes = sizes
        self.spare_slot = sizes.num_slots
        self.vocab_size = vocab_size
        self.admit_tokens = admit_tokens
        self._templates: dict[Bucket, tuple[StepLayout, np.ndarray]] = {}
        # Of each slot: alternatives wanted of sampled tokens and of prompt positions, -1 for no scores.
        self._logprobs = [-1] * sizes.num_slots
        self._prompt_logprobs = [-1] * sizes.num_slots
        self._scored: set[int] = set()  # slots that want any
        # Places in page tables whose pages were given back. Nobody reads them any more, so they are sent when there is
        # room: a chunk may give back more pages than the small step after it has.
        self._given_back: list[int] = []

    def layout(self, bucket: Bucket) -> StepLayout:
        """How `pack` lays inputs out for this bucket."""
        return self._template(bucket)[0]

    def _template(self, bucket: Bucket) -> tuple[StepLayout, np.ndarray]:
        """The bucket's layout and its inputs when every row is padding."""
        if bucket not in self._templates:
            layout = StepLayout.of(bucket, self.sizes)
            packed = np.zeros(layout.size, np.int32)
            inputs = layout.unpack(packed)
            inputs.slots[:] = self.spare_slot
            inputs.drawing[:] = -1
            inputs.write_places[:] = self.sizes.place(0, self.spare_slot, 0)
            self._templates[bucket] = layout, packed
        return self._templates[bucket]

    def nothing(self, bucket: Bucket) -> np.ndarray:
        """What `pack` gives for a plan without rows, whatever is left to send."""
        return self._template(bucket)[1].copy()

    def pack(self, plan: StepPlan, bucket: Bucket) -> np.ndarray:
        """(`layout(bucket).size`,) int32. The plan must fit: `plan.num_tokens <= bucket.tokens`.

        Raises ValueError when the plan appends more pages than a step of this bucket can fill.
        """
        layout, template = self._template(bucket)
        packed = template.copy()
        inputs = layout.unpack(packed)
        ids: list[int] = []
        places: list[int] = []
        pages: list[int] = []
        place = self.sizes.place
        for row in plan.rows:
            if row.admission is not None:
                self._remember(row.slot, row.admission.params)
            for table, position, page in row.writes:
                if page:
                    places.append(place(table, row.slot, position))
                    pages.append(page)
                else:
                    self._given_back.append(place(table, row.slot, position))
            ids += row.token_ids or (-1,)
        count = len(plan.rows)
        inputs.token_ids[: len(ids)] = ids
        inputs.slots[:count] = [row.slot for row in plan.rows]
        inputs.query_lens[:count] = [row.length for row in plan.rows]
        drawing = rows_that_draw(plan)
        inputs.drawing[: len(drawing)] = drawing
        if places or self._given_back:
            room = layout.writes - len(places)
            if room < 0:
                raise ValueError(
                    f"the plan appends {len(places)} pages; {bucket.name} of {self.sizes.page_size} tokens a page has "
                    f"room for {layout.writes}"
                )
            places += self._given_back[:room]
            del self._given_back[:room]
            inputs.write_places[: len(places)] = places
            inputs.write_pages[: len(pages)] = pages
        return packed

    def pack_targets(self, plan: StepPlan, size: int) -> np.ndarray:
        """(1 + size,) int32: how many of a step's tokens are in front of the last one that is scored, it included; and
        the token after each of them, 0 where nobody asks. size: the most tokens of a step."""
        packed = np.zeros(1 + size, np.int32)
        start = 1
        for row in plan.rows:
            if row.targets:
                packed[start : start + len(row.targets)] = row.targets
                packed[0] = start - 1 + len(row.targets)
            start += row.length
        return packed

    def _remember(self, slot: int, params: SamplingParams) -> None:
        """What the host must know of an admitted slot. What is left to send of the one before it is void."""
        self._logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        self._prompt_logprobs[slot] = -1 if params.prompt_logprobs is None else params.prompt_logprobs
        if params.logprobs is None and params.prompt_logprobs is None:
            self._scored.discard(slot)
        else:
            self._scored.add(slot)
        if self._given_back:
            self._given_back = [place for place in self._given_back if self.sizes.slot_of(place) != slot]

    def most_logprobs(self, plan: StepPlan) -> tuple[int, int]:
        """The most alternatives that the plan's sampled tokens and its prompt positions want; -1 where none do."""
        if not self._scored:
            return -1, -1
        sampled = max([self._logprobs[row.slot] for row in plan.rows if row.draws], default=-1)
        prompt = max([self._prompt_logprobs[row.slot] for row in plan.rows if row.targets], default=-1)
        return sampled, prompt

    def pack_admissions(self, plan: StepPlan) -> list[AdmitInputs]:
        """Calls of the admission executable that must run before the plan's step, usually none."""
        admitted = [(row.slot, row.admission) for row in plan.rows if row.admission is not None]
        if not admitted:
            return []
        rows = [self.admission_rows(admitted[i : i + ADMISSIONS]) for i in range(0, len(admitted), ADMISSIONS)]
        tables = [
            inputs
            for slot, admission in admitted
            if needs_tables(admission.params)
            for inputs in self._table_calls(slot, admission)
        ]
        return [AdmitInputs(*call) for call in zip_longest(rows, tables)]

    def admission_rows(self, admitted: list[tuple[int, Admission]]) -> np.ndarray:
        """(ADMISSIONS, words) int32; see `AdmitInputs.rows`."""
        rows = np.zeros(ADMISSIONS, self.sizes.admission)
        rows["slot"] = self.spare_slot
        rows["settings"] = neutral_settings(ADMISSIONS)
        for i, (slot, admission) in enumerate(admitted):
            rows[i]["slot"] = slot
            rows[i]["start"] = admission.start
            for name, value in _settings(admission).items():
                rows["settings"][name][i] = value
            for table, pages in zip(rows["page_tables"][i], admission.tables, strict=True):
                table[: len(pages)] = pages
        return rows.view(np.int32).reshape(ADMISSIONS, -1)

    def _table_calls(self, slot: int, admission: Admission) -> list[TableInputs]:
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
                TableInputs(
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


def rows_that_draw(plan: StepPlan) -> list[int]:
    """Numbers of the plan's rows that draw a token, in order."""
    return [i for i, row in enumerate(plan.rows) if row.draws]


def _settings(admission: Admission) -> dict[str, float]:
    """Values of `SETTINGS`."""
    values = device_values(admission.params, admission.seed, admission.index)
    return {"prompt_len": admission.prompt_len, "rope_variant": admission.rope_variant, **values}


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
