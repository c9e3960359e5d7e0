"""What is declared of the sampling parameters, against what it must be, written by hand here."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxinfer.errors import InvalidRequest
from jaxinfer.runtime.sampling import SamplingParamsRows
from jaxinfer.sampling_params import DEVICE_COLUMNS, FIELDS, SamplingParams, device_values

DEFAULTS: dict[str, Any] = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "max_tokens": 16,
    "min_tokens": 0,
    "stop": (),
    "stop_token_ids": (),
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "logprobs": None,
    "prompt_logprobs": None,
    "logit_bias": {},
    "allowed_token_ids": None,
    "bad_token_ids": (),
    "skip_special_tokens": True,
    "truncate_prompt_tokens": None,
    "structured_outputs": None,
    "thinking_token_budget": None,
}
# Field -> values at the borders that are taken, values that are not, and what is said of those.
BORDERS: dict[str, tuple[list[Any], list[Any], str]] = {
    "n": ([1, 64], [0, 65, 1.0, None], "it must be an integer from 1 to 64"),
    "temperature": ([0, 100.0], [-0.1, 100.5, "hot", None], "it must be a number from 0 to 100"),
    "top_p": ([0.001, 1, 1.0], [0, 1.001, -1], "it must be above 0 and at most 1"),
    "top_k": ([-1, 0, 1, 10**30], [-2, 2.0], "it must be a positive integer, or 0 or -1 for off"),
    "min_p": ([0, 1], [-0.001, 1.001], "it must be a number from 0 to 1"),
    "repetition_penalty": ([0.001, 100], [0, 100.5, -1], "it must be above 0 and at most 100"),
    "presence_penalty": ([-2, 2.0], [-2.1, 2.1], "it must be a number from -2 to 2"),
    "frequency_penalty": ([-2, 2.0], [-2.1, 2.1], "it must be a number from -2 to 2"),
    "seed": ([-(2**63), 2**64 - 1, None], [-(2**63) - 1, 2**64, 1.0], "it must be a 64-bit integer"),
    "max_tokens": ([1, 10**30, None], [0, -1, 1.5], "it must be a positive integer"),
    "min_tokens": ([0, 16], [-1, 0.5, None], "it must be an integer of 0 or more"),
    "logprobs": ([-1, 0, 10**9, None], [-2, 1.0], "it must be an integer of 0 or more, or -1 for all"),
    "prompt_logprobs": ([-1, 0, 10**9, None], [-2, 1.0], "it must be an integer of 0 or more, or -1 for all"),
    "truncate_prompt_tokens": (
        [-1, 1, 10**9, None],
        [0, -2, 1.0],
        "it must be a positive integer, or -1 for as many as fit the context",
    ),
    "thinking_token_budget": ([0, 10**30, None], [-1, 0.5], "it must be an integer of 0 or more"),
}
COLUMNS = {  # attribute of SamplingParamsRows -> (dtype, neutral value)
    "temperature": (np.float32, 0),
    "top_k": (np.int32, 0),
    "top_p": (np.float32, 1),
    "min_p": (np.float32, 0),
    "repetition_penalty": (np.float32, 1),
    "presence_penalty": (np.float32, 0),
    "frequency_penalty": (np.float32, 0),
    "seed_low": (np.uint32, 0),
    "seed_high": (np.uint32, 0),
    "sequence_index": (np.int32, 0),
    "min_tokens": (np.int32, 0),
    "num_logprobs": (np.int32, -1),
    "has_penalties": (np.bool_, 0),
    "has_bias": (np.bool_, 0),
}


def test_defaults() -> None:
    made = SamplingParams()
    assert {field.name: getattr(made, field.name) for field in dataclasses.fields(made)} == DEFAULTS
    assert {name: declared.default for name, declared in FIELDS.items()} == DEFAULTS


@pytest.mark.parametrize("name", BORDERS)
def test_ranges(name: str) -> None:
    taken, refused, allowed = BORDERS[name]
    for value in taken:
        assert getattr(SamplingParams(**{name: value}), name) == value
    for value in [*refused, True, float("nan"), float("inf"), "1"]:
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams(**{name: value})
        assert (caught.value.field, caught.value.allowed) == (name, allowed), value


def test_every_number_has_a_range() -> None:
    assert BORDERS.keys() == {name for name, declared in FIELDS.items() if declared.kind in ("integer", "number")}


@pytest.mark.parametrize(("given", "taken"), [(-1, None), (-2, -2), (0, 0)])
def test_seed_of_minus_one_is_drawn(given: int, taken: int | None) -> None:
    assert SamplingParams(seed=given).seed == taken


def test_lists_become_tuples() -> None:
    params = SamplingParams(
        stop="x",
        stop_token_ids=[1],
        bad_token_ids=[2],
        allowed_token_ids=[3],
        logit_bias=None,  # type: ignore[arg-type]
    )
    assert (params.stop, params.stop_token_ids, params.bad_token_ids) == (("x",), (1,), (2,))
    assert (params.allowed_token_ids, params.logit_bias) == ((3,), {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"logit_bias": {-1: 0.0}}, "logit_bias is -1; keys must be token ids"),
        ({"logit_bias": {1: 100.5}}, "logit_bias is 100.5; values must be from -100 to 100"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias is nan; values must be from -100 to 100"),
        ({"stop_token_ids": [1.0]}, "stop_token_ids is 1.0; it must hold token ids"),
        ({"bad_token_ids": [True]}, "bad_token_ids is True; it must hold token ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids is -1; it must hold token ids"),
        ({"allowed_token_ids": []}, r"allowed_token_ids is \(\); it must name at least one token, or be left out"),
    ],
)
def test_lists_hold_token_ids(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**given)


# -- on the device ----------------------------------------------------------------------------------------------------


def test_columns_are_those_of_the_rows() -> None:
    assert {field.name for field in dataclasses.fields(SamplingParamsRows)} == COLUMNS.keys()
    found = {name: (np.dtype(column.dtype).type, column.neutral) for name, column in DEVICE_COLUMNS.items()}
    assert found == COLUMNS


def test_a_request_that_asks_for_nothing_is_neutral_but_for_its_draw() -> None:
    values = device_values(SamplingParams(temperature=0), seed=0, index=0)
    assert values == {name: column.neutral for name, column in DEVICE_COLUMNS.items()}


def test_values_of_a_sequence() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=2**40,
        min_p=0.125,
        repetition_penalty=2.0,
        presence_penalty=-1.0,
        frequency_penalty=1.5,
        min_tokens=2**40,
        max_tokens=None,
        logprobs=3,
        bad_token_ids=(1,),
    )
    assert device_values(params, seed=2**63 + 7, index=4) == {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 2**31 - 1,
        "min_p": 0.125,
        "repetition_penalty": 2.0,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.5,
        "min_tokens": 2**31 - 1,
        "num_logprobs": 3,
        "seed_low": 7,
        "seed_high": 2**31,
        "sequence_index": 4,
        "has_penalties": True,
        "has_bias": True,
    }
    for top_k in (0, -1):
        assert device_values(SamplingParams(top_k=top_k), 0, 0)["top_k"] == 0
