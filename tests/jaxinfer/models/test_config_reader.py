"""`ConfigReader` gives typed values, and refuses what nobody asked it for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jaxinfer.config import ConfigError, UnsupportedModelError
from jaxinfer.models.config_reader import ConfigReader


def reader(**config: Any) -> ConfigReader:
    return ConfigReader(config, "ToyForCausalLM")


@pytest.mark.parametrize("config", [{}, {"key": None}])
def test_a_missing_key_and_a_null_mean_the_default(config: dict[str, Any]) -> None:
    read = reader(**config)
    assert read.raw("key") is None
    assert read.raw("key", "x") == "x"
    assert read.count("key", 3) == 3
    assert read.number_of_layers("key", 0) == 0
    assert read.switch("key", True) is True
    assert read.positive("key", 0.5) == 0.5
    assert read.choice("key", "a", {"a": "A"}) == "A"
    read.only("key", 1)
    read.refuse_unread(["ToyForCausalLM"])
    assert ("key" in read) == ("key" in config)


def test_some_nulls_speak() -> None:
    assert reader().optional_count("key", 3) == 3
    assert reader(key=None).optional_count("key", 3) is None
    assert reader().optional_positive("key", 3.0) == 3.0
    assert reader(key=None).optional_positive("key", 3.0) is None


def test_values_of_the_file_count_before_defaults() -> None:
    read = reader(count=2, layers=0, switch=False, positive=7, choice="b")
    assert (read.count("count", 3), read.optional_count("count", None)) == (2, 2)
    assert read.number_of_layers("layers", 28) == 0
    assert read.switch("switch", True) is False
    assert isinstance(read.positive("positive", 1.0), float)
    assert read.choice("choice", "a", {"a": "A", "b": "B"}) == "B"


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        (0, lambda r: r.count("key", 1), "key is 0; it must be a positive integer"),
        (True, lambda r: r.count("key", 1), "key is True; it must be a positive integer"),
        (2.0, lambda r: r.optional_count("key", None), "key is 2.0; it must be a positive integer"),
        (2**31, lambda r: r.count("key", 1), "key is 2147483648; it must be at most 2147483647"),
        (-1, lambda r: r.number_of_layers("key", 1), "key is -1; it must be a number of layers, 0 or more"),
        (1, lambda r: r.switch("key", True), "key is 1; it must be true or false"),
        (0.0, lambda r: r.positive("key", 1.0), "key is 0.0; it must be a positive number"),
        (float("inf"), lambda r: r.optional_positive("key", None), "key is inf; it must be a positive number"),
        (["a"], lambda r: r.choice("key", "a", {"a": "A"}), "key is ['a']; it must be one of ['a']"),
        (2, lambda r: r.only("key", 1), "key is 2; ToyForCausalLM supports [1, None] only"),
        (2, lambda r: r.only("key"), "key is 2; ToyForCausalLM supports [None] only"),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(
    value: Any, read: Callable[[ConfigReader], Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read(reader(key=value))
    assert str(error.value) == message


def test_what_nobody_read_is_refused() -> None:
    read = reader(hidden_size=8, clip_qkv=8.0)
    read.count("hidden_size", 1)
    with pytest.raises(
        UnsupportedModelError, match=r"has clip_qkv = 8\.0, .*ToyForCausalLM.*Known keys: .*hidden_size"
    ):
        read.refuse_unread(["ToyForCausalLM"])
    read.raw("clip_qkv")
    read.refuse_unread(["ToyForCausalLM"])


def test_the_kind_of_model_is_said_first_unless_its_key_was_read() -> None:
    read = reader(clip_qkv=8.0, num_experts=4)
    with pytest.raises(UnsupportedModelError, match=r"a mixture of experts.*supported are .*'ToyForCausalLM'"):
        read.refuse_unread(["ToyForCausalLM"])
    read.count("num_experts", 1)
    with pytest.raises(UnsupportedModelError, match="clip_qkv"):
        read.refuse_unread(["ToyForCausalLM"])


@pytest.mark.parametrize(
    "key", ["temperature", "_name", "x_version", "attention_dropout", "torch_dtype", "n_positions"]
)
def test_harmless_keys_are_passed_over(key: str) -> None:
    reader(**{key: "x"}).refuse_unread(["ToyForCausalLM"])


def test_a_family_can_pass_over_a_key() -> None:
    read = reader(hidden_act="relu2")
    read.pass_over("hidden_act")
    read.refuse_unread(["ToyForCausalLM"])


def test_a_key_with_one_meaning_for_all_may_say_that() -> None:
    reader(is_causal=True, pruned_heads={}).refuse_unread(["ToyForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="is_causal is False; ToyForCausalLM supports"):
        reader(is_causal=False).refuse_unread(["ToyForCausalLM"])
    asked = reader(is_causal=False)  # a family that understands it reads it, and then it is the family's affair
    assert asked.switch("is_causal", True) is False
    asked.refuse_unread(["ToyForCausalLM"])


def test_defaults_in_a_message_are_pointed_out() -> None:
    read = reader(hidden_size=8)
    for key, default in (("hidden_size", 64), ("num_attention_heads", 3), ("width", 64)):
        read.count(key, default)
    assert read.defaults_in("hidden_size 8 and num_heads 3") == (
        " (config.json does not give num_attention_heads 3: the default of ToyForCausalLM in transformers)"
    )
    assert read.defaults_in("hidden_size 64") == ""
