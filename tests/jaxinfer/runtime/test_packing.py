"""Plans into arrays: shapes, padding, mirrors, and that nothing returned is written again."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest

from jaxinfer.runtime.buckets import Bucket
from jaxinfer.runtime.packing import Packer, bias_table
from jaxinfer.runtime.sampling import MAX_BIAS
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.plan import Admission, PlanRow, StepPlan, TableWrite

VOCAB = 50
BUCKET = Bucket(8, 4)


def admission(**changes: object) -> Admission:
    fields: dict[str, object] = {
        "start": 0,
        "prompt_len": 3,
        "tables": ((4, 5),),
        "regime": 0,
        "params": SamplingParams(temperature=0.5, top_k=-1, logprobs=2, min_tokens=2**40, max_tokens=None),
        "seed": 2**63 + 7,
        "index": 1,
        "stop_ids": (9,),
        "history": (),
    }
    return Admission(**{**fields, **changes})  # type: ignore[arg-type]


def row(slot: int, start: int, ids: tuple[int, ...], **changes: object) -> PlanRow:
    length = len(ids) or 1
    fields = PlanRow("r", 0, 0, 0, slot, start, length, 1, ids, (), None, ())
    return fields._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture
def packer() -> Packer:
    return Packer(max_num_seqs=4, max_pages=6, vocab_size=VOCAB, admit_tokens=4)


def test_rows_tokens_and_padding(packer: Packer) -> None:
    first = row(2, 0, (7, 8, 9), admission=admission())
    inputs = packer.pack(StepPlan([first, row(0, 5, ())], 4), BUCKET)
    chex.assert_shape([inputs.token_ids, inputs.targets], (8,))
    chex.assert_shape([inputs.slots, inputs.query_lens, inputs.start_at, inputs.samples], (4,))
    chex.assert_shape(inputs.page_tables, (4, 6))
    assert inputs.token_ids.tolist() == [7, 8, 9, -1, 0, 0, 0, 0]
    assert inputs.slots.tolist() == [2, 0, 4, 4]
    assert inputs.query_lens.tolist() == [3, 1, 0, 0]
    assert inputs.start_at.tolist() == [0, -1, -1, -1]
    assert inputs.page_tables.tolist()[0] == [4, 5, 0, 0, 0, 0]
    params = inputs.params
    assert (params.seed_low[0], params.seed_high[0]) == (7, 2**31)
    assert (params.top_k[0], params.min_tokens[0], params.num_logprobs[0]) == (0, 2**31 - 1, 2)
    assert (params.top_p[2], params.repetition_penalty[2], params.num_logprobs[2]) == (1, 1, -1)
    for leaf in jax.tree.leaves(inputs):
        assert np.asarray(leaf).dtype.itemsize <= 4


def test_page_tables_grow_and_start_anew(packer: Packer) -> None:
    packer.pack(StepPlan([row(1, 0, (1, 2), admission=admission())], 2), BUCKET)
    grown = packer.pack(StepPlan([row(1, 2, (), writes=(TableWrite(0, 2, 6), TableWrite(0, 3, 7)))], 1), BUCKET)
    assert grown.page_tables[0].tolist() == [4, 5, 6, 7, 0, 0]
    again = packer.pack(StepPlan([row(1, 0, (1,), admission=admission(tables=((3,),)))], 1), BUCKET)
    assert again.page_tables[0].tolist() == [3, 0, 0, 0, 0, 0]


def test_nothing_returned_is_written_again(packer: Packer) -> None:
    """device_put may alias or read late, so the next pack must leave every array alone."""
    inputs = packer.pack(StepPlan([row(1, 0, (1, 2), admission=admission())], 2), BUCKET)
    before = [np.array(leaf) for leaf in jax.tree.leaves(inputs)]
    packer.pack(StepPlan([row(1, 0, (5,), admission=admission(tables=((2,),), seed=1, prompt_len=1))], 1), BUCKET)
    packer.pack(StepPlan([row(1, 1, (), writes=(TableWrite(0, 1, 6),))], 1), BUCKET)
    chex.assert_trees_all_equal(before, [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)])


def test_prompt_targets_sit_beside_their_tokens(packer: Packer) -> None:
    rows = [row(0, 9, ()), row(1, 0, (1, 2, 3), admission=admission(), targets=(2, 3))]
    inputs = packer.pack(StepPlan(rows, 4), BUCKET)
    assert bool(inputs.score_prompt)
    assert inputs.targets.tolist() == [0, 2, 3, 0, 0, 0, 0, 0]


def test_long_histories_take_several_calls(packer: Packer) -> None:
    params = SamplingParams(presence_penalty=1.0)
    history = tuple(range(10, 19))
    entering = row(3, 9, (1,), admission=admission(params=params, start=9, history=history))
    calls = packer.pack_admissions(StepPlan([entering, row(0, 4, ())], 2))
    assert [(int(c.offset), int(c.count), bool(c.clear)) for c in calls] == [(0, 4, True), (4, 4, False), (8, 1, False)]
    assert [t for c in calls for t in c.token_ids[: int(c.count)]] == list(history)
    assert calls[0].stop_ids.tolist()[:2] == [9, VOCAB]
    plain = row(3, 0, (1,), admission=admission(params=SamplingParams()))
    assert packer.pack_admissions(StepPlan([plain], 1)) == []


def test_bias_table() -> None:
    ids, values = bias_table(SamplingParams(logit_bias={3: 2.0, 4: -1.0}, bad_token_ids=(4, 6)), VOCAB)
    assert dict(zip(ids[:3].tolist(), values[:3].tolist(), strict=True)) == {3: 2.0, 4: -np.inf, 6: -np.inf}
    assert ids.shape == (MAX_BIAS,)
    assert (ids[3:] == VOCAB).all()
    ids, values = bias_table(SamplingParams(allowed_token_ids=(1, 3), logit_bias={3: 2.0, 9: 5.0}), VOCAB)
    assert dict(zip(ids[:2].tolist(), values[:2].tolist(), strict=True)) == {1: 0.0, 3: 2.0}
