"""Plans into arrays: shapes, padding, admissions, and that nothing returned is written again."""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.runtime.buckets import Bucket
from jaxinfer.runtime.inputs import ADMISSIONS, SETTINGS, SlotSettings, SlotSizes, StepInputs, StepLayout
from jaxinfer.runtime.packing import Packer, bias_table
from jaxinfer.runtime.sampling import MAX_BIAS
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.step_plan import Admission, PlanRow, StepPlan, TableWrite

VOCAB = 50
BUCKET = Bucket(8, 4)
SIZES = SlotSizes(num_slots=4, max_pages=6, page_size=2)


def admission(**changes: object) -> Admission:
    fields: dict[str, object] = {
        "start": 0,
        "prompt_len": 3,
        "tables": ((4, 5),),
        "rope_variant": 0,
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
    return Packer(SIZES, vocab_size=VOCAB, admit_tokens=4)


def packed(packer: Packer, rows: list[PlanRow], bucket: Bucket = BUCKET) -> StepInputs:
    tokens = sum(row.length for row in rows)
    return packer.layout(bucket).unpack(packer.pack(StepPlan(rows, tokens), bucket))


def writes_of(inputs: StepInputs) -> dict[int, int]:
    """Page by place; places of the spare slot hold nothing but the null page."""
    written = dict(zip(inputs.write_places.tolist(), inputs.write_pages.tolist(), strict=True))
    assert written.pop(SIZES.place(0, SIZES.num_slots, 0), 0) == 0
    return written


def test_rows_tokens_and_padding(packer: Packer) -> None:
    first = row(2, 0, (7, 8, 9), admission=admission(), draws=0)
    inputs = packed(packer, [first, row(0, 5, ())])
    chex.assert_shape(inputs.token_ids, (8,))
    chex.assert_shape([inputs.slots, inputs.query_lens, inputs.drawing], (4,))
    chex.assert_shape([inputs.write_places, inputs.write_pages], (8 // 2 + 4,))
    assert inputs.token_ids.tolist() == [7, 8, 9, -1, 0, 0, 0, 0]
    assert inputs.slots.tolist() == [2, 0, 4, 4]
    assert inputs.query_lens.tolist() == [3, 1, 0, 0]
    assert inputs.drawing.tolist() == [1, -1, -1, -1]
    assert writes_of(inputs) == {}
    assert packer.pack(StepPlan([]), BUCKET).dtype == np.int32


def test_an_admission_says_all_of_a_slot(packer: Packer) -> None:
    (call,) = packer.pack_admissions(StepPlan([row(2, 3, (7,), admission=admission(start=3, rope_variant=1))], 1))
    assert call.tables is not None  # for min_tokens
    rows = np.asarray(call.rows).view(SIZES.admission)[:, 0]
    assert rows.shape == (ADMISSIONS,)
    assert (rows["slot"].tolist(), rows["start"].tolist()) == ([2] + [4] * 7, [3] + [0] * 7)
    assert rows["page_tables"][0].tolist() == [[4, 5, 0, 0, 0, 0]]
    settings = rows["settings"]
    assert (settings["prompt_len"][0], settings["rope_variant"][0], settings["temperature"][0]) == (3, 1, 0.5)
    assert (settings["seed_low"][0], settings["seed_high"][0]) == (7, 2**31)
    assert (settings["top_k"][0], settings["min_tokens"][0], settings["num_logprobs"][0]) == (0, 2**31 - 1, 2)
    assert (settings["top_p"][1], settings["repetition_penalty"][1], settings["num_logprobs"][1]) == (1, 1, -1)
    assert not rows["page_tables"][1:].any()
    assert all(SETTINGS[name].itemsize == 4 for name in SETTINGS.names or ())


def test_the_device_reads_settings_as_they_were_written(packer: Packer) -> None:
    params = SamplingParams(
        temperature=0.3, top_k=5, top_p=0.9, min_p=1e-30, presence_penalty=-2.0, frequency_penalty=2
    )
    given = admission(params=params, seed=2**64 - 1, index=3, rope_variant=1)
    (call,) = packer.pack_admissions(StepPlan([row(0, 0, (1,), admission=given)], 1))
    words = jnp.asarray(np.asarray(call.rows)[:, 2 : 2 + len(SETTINGS.names or ())])
    settings = SlotSettings.unpack(words)
    got = {f.name: np.asarray(getattr(settings.params, f.name)) for f in dataclasses.fields(settings.params)}
    assert {name: value[0].item() for name, value in got.items()} == {
        "temperature": np.float32(0.3), "top_k": 5, "top_p": np.float32(0.9), "min_p": np.float32(1e-30),
        "repetition_penalty": 1.0, "presence_penalty": -2.0, "frequency_penalty": 2.0, "seed_low": 2**32 - 1,
        "seed_high": 2**32 - 1, "sequence_index": 3, "min_tokens": 0, "num_logprobs": -1, "has_penalties": True,
        "has_bias": False,
    }  # fmt: skip
    assert (settings.prompt_lens[0], settings.rope_variants[0], settings.rope_variants[1]) == (3, 1, 0)
    neutral = {name: value[1].item() for name, value in got.items() if value[1]}
    assert neutral == {"top_p": 1.0, "repetition_penalty": 1.0, "num_logprobs": -1}


def test_more_admissions_than_a_call_has_room_for(packer: Packer) -> None:
    wide = Packer(dataclasses.replace(SIZES, num_slots=20), VOCAB, 4)
    params = SamplingParams()
    rows = [row(slot, 0, (1,), admission=admission(params=params)) for slot in range(ADMISSIONS + 1)]
    calls = wide.pack_admissions(StepPlan(rows, len(rows)))
    slots = [np.asarray(call.rows)[:, 0].tolist() for call in calls]
    assert slots == [list(range(ADMISSIONS)), [ADMISSIONS] + [20] * (ADMISSIONS - 1)]
    assert [call.tables for call in calls] == [None, None]


def test_appended_pages_are_written_to_the_slot_s_table(packer: Packer) -> None:
    inputs = packed(packer, [row(1, 2, (), writes=(TableWrite(0, 2, 6), TableWrite(0, 3, 7)))])
    assert writes_of(inputs) == {SIZES.place(0, 1, 2): 6, SIZES.place(0, 1, 3): 7}
    assert SIZES.place(0, 1, 2) == np.ravel_multi_index((0, 1, 2), (1, 5, 6))
    with pytest.raises(ValueError, match=r"the plan appends 9 pages; .* has room for 8"):
        packed(packer, [row(1, 2, (), writes=tuple(TableWrite(0, i % 6, 1) for i in range(9)))])


def test_given_back_pages_wait_for_room_and_go_with_their_slot(packer: Packer) -> None:
    """A chunk gives back more pages than the small step after it has room for."""
    packer = Packer(dataclasses.replace(SIZES, max_pages=40), VOCAB, 4)
    place = packer.sizes.place
    gone = tuple(TableWrite(0, i, 0) for i in range(20))
    first = packed(packer, [row(1, 60, (), writes=(*gone, TableWrite(0, 30, 9))), row(2, 5, (), writes=gone[:2])])
    assert (first.write_places[0], first.write_pages[0]) == (place(0, 1, 30), 9)
    assert first.write_places[1:].tolist() == [place(0, 1, i) for i in range(7)]
    assert not first.write_pages[1:].any()
    second = packed(packer, [row(1, 61, ())])
    assert second.write_places.tolist() == [place(0, 1, i) for i in range(7, 15)]
    fresh = packed(packer, [row(1, 0, (1,), admission=admission())])
    assert fresh.write_places[:2].tolist() == [place(0, 2, 0), place(0, 2, 1)]
    assert set(fresh.write_places[2:].tolist()) == {place(0, 4, 0)}


def test_nothing_returned_is_written_again(packer: Packer) -> None:
    """device_put may alias or read late, so the next pack must leave every array alone."""
    plan = StepPlan([row(1, 0, (1, 2), admission=admission())], 2)
    arrays = [packer.pack(plan, BUCKET), *(np.asarray(call.rows) for call in packer.pack_admissions(plan))]
    before = [np.array(array) for array in arrays]
    other = StepPlan([row(1, 0, (5,), admission=admission(tables=((2,),), seed=1, prompt_len=1))], 1)
    packer.pack(other, BUCKET)
    packer.pack_admissions(other)
    packer.pack(StepPlan([row(1, 1, (), writes=(TableWrite(0, 1, 6),))], 1), BUCKET)
    chex.assert_trees_all_equal(before, arrays)


def test_the_prompt_token_after_a_scored_chunk(packer: Packer) -> None:
    """The other targets are the chunk's own next tokens; at the prompt's end there is none."""
    rows = [row(0, 9, ()), row(1, 0, (1, 2), admission=admission(), targets=(2, 3)), row(2, 5, (4, 5), targets=(5,))]
    targets = packer.pack_targets(StepPlan(rows, 5), 8)
    assert targets.tolist() == [4, 0, 2, 3, 5, 0, 0, 0, 0]  # the last scored one is the fourth token
    assert packer.pack_targets(StepPlan([row(0, 9, ())], 1), 8).tolist() == [0] * 9


def test_an_empty_step_takes_nothing_that_is_left_to_send(packer: Packer) -> None:
    packer.pack(StepPlan([row(1, 0, (1, 2), admission=admission())], 2), BUCKET)
    room = SIZES.most_writes(BUCKET)
    gone = tuple(TableWrite(0, position, 0) for position in range(room + 2))
    packer.pack(StepPlan([row(1, 2, (3,), writes=gone)], 1), BUCKET)
    empty = packer.layout(BUCKET).unpack(packer.nothing(BUCKET))
    assert writes_of(empty) == {}
    assert empty.drawing.tolist() == [-1] * 4
    left = writes_of(packed(packer, [row(1, 3, (4,))]))
    assert sorted(left) == [SIZES.place(0, 1, position) for position in (room, room + 1)]


def test_long_histories_take_several_calls(packer: Packer) -> None:
    params = SamplingParams(presence_penalty=1.0)
    history = tuple(range(10, 19))
    entering = row(3, 9, (1,), admission=admission(params=params, start=9, history=history))
    made = packer.pack_admissions(StepPlan([entering, row(0, 4, ())], 2))
    assert [call.rows is None for call in made] == [False, True, True]
    calls = [call.tables for call in made if call.tables is not None]
    assert [(int(c.offset), int(c.count), bool(c.clear)) for c in calls] == [(0, 4, True), (4, 4, False), (8, 1, False)]
    assert [t for c in calls for t in c.token_ids[: int(c.count)]] == list(history)
    assert calls[0].stop_ids.tolist()[:2] == [9, VOCAB]
    plain = row(3, 0, (1,), admission=admission(params=SamplingParams()))
    (call,) = packer.pack_admissions(StepPlan([plain], 1))
    assert call.tables is None
    assert packer.pack_admissions(StepPlan([row(0, 4, ())], 1)) == []


def test_bias_table() -> None:
    ids, values = bias_table(SamplingParams(logit_bias={3: 2.0, 4: -1.0}, bad_token_ids=(4, 6)), VOCAB)
    assert dict(zip(ids[:3].tolist(), values[:3].tolist(), strict=True)) == {3: 2.0, 4: -np.inf, 6: -np.inf}
    assert ids.shape == (MAX_BIAS,)
    assert (ids[3:] == VOCAB).all()
    ids, values = bias_table(SamplingParams(allowed_token_ids=(1, 3), logit_bias={3: 2.0, 9: 5.0}), VOCAB)
    assert dict(zip(ids[:2].tolist(), values[:2].tolist(), strict=True)) == {1: 0.0, 3: 2.0}


def test_a_small_step_sends_one_small_array() -> None:
    """Page tables of any width stay on the device; what they change by is sent."""
    sizes = SlotSizes(num_slots=256, max_pages=2048, page_size=64)
    bucket = Bucket(8, 8)
    packed = Packer(sizes, VOCAB, admit_tokens=4).nothing(bucket)
    assert packed.nbytes <= 4096
    assert packed.nbytes == 4 * StepLayout.of(bucket, sizes).size
