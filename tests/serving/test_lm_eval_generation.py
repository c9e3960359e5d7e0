"""What of the adapter needs no lm-eval: generation arguments of its tasks, and the advice to install it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.errors import InvalidRequest
from serving.lm_eval.generation import sampling_params
from tests.fakes import BOS, EOS
from tests.serving.harness import tokenizer

ROOT = Path(__file__).resolve().parents[2]


def fields(arguments: dict[str, Any], *names: str) -> tuple[Any, ...]:
    params = sampling_params(arguments, tokenizer(), 256)
    return tuple(getattr(params, name) for name in names)


@pytest.mark.parametrize(
    ("arguments", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.2}, 0.2),
        ({"do_sample": True, "temperature": 0}, 0.0),
        ({"temperature": 0.0}, 0.0),
        ({"temperature": 0.8}, 0.8),
    ],
)
def test_greedy_unless_sampling_is_asked_for(arguments: dict[str, Any], temperature: float) -> None:
    assert fields(arguments, "temperature") == (temperature,)


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ({}, 256),
        ({"max_gen_toks": 7}, 7),
        ({"max_new_tokens": 8}, 8),
        ({"max_tokens": 9}, 9),
        ({"max_completion_tokens": 10}, 10),
        ({"max_tokens": 9, "max_gen_toks": 7}, 7),
    ],
)
def test_length_by_any_of_its_names(arguments: dict[str, Any], tokens: int) -> None:
    assert fields(arguments, "max_tokens") == (tokens,)


@pytest.mark.parametrize(
    ("until", "strings", "ids"),
    [
        (None, (), ()),
        ([], (), ()),
        ("\n\n", ("\n\n",), ()),
        (["\n", "", "Q:"], ("\n", "Q:"), ()),
        (["</s>", "x", "<s>"], ("x",), (EOS, BOS)),
        (["a</s>"], ("a</s>",), ()),
    ],
)
def test_stops(until: Any, strings: tuple[str, ...], ids: tuple[int, ...]) -> None:
    assert fields({"until": until}, "stop", "stop_token_ids") == (strings, ids)


def test_other_fields_are_passed_on() -> None:
    given = {"top_p": 0.95, "top_k": 5, "seed": 3, "repetition_penalty": 1.1, "num_beams": 1}
    assert fields(given, "top_p", "top_k", "seed", "repetition_penalty") == (0.95, 5, 3, 1.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 10}, "num_beams is 10; beam search is not supported"),
        ({"typical_p": 0.5}, "typical_p is 0.5; generation arguments are until, do_sample"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; it must be true or false"),
        ({"until": [3]}, r"until is \[3\]; it must be a string or a list of strings"),
        ({"max_gen_toks": 0}, "max_tokens is 0"),
        ({"do_sample": True, "top_p": 2}, "top_p is 2"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        sampling_params(arguments, tokenizer(), 256)


def test_without_lm_eval_the_command_says_what_to_install() -> None:
    script = "import importlib.util as u, sys; u.find_spec = lambda name: None; import serving.lm_eval.__main__ as m; "
    done = subprocess.run(
        [sys.executable, "-c", script + "sys.exit(m.main())"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "pip install 'jaxinfer[lm-eval]'" in done.stderr
