"""The comparison with transformers: its oracle, its limits, its refusals; the whole of it where torch is installed."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints.verify as verify
from checkpoints import rules
from checkpoints.convert import convert
from checkpoints.files import REPORT_FILE, CheckpointError
from checkpoints.load import load_model
from checkpoints.verify import LIMITS, check_limits, compare_logits, compare_tokenizers, dense_logits
from jaxinfer.errors import ChatTemplateError
from jaxinfer.text import Tokenizer, load_tokenizer
from serving.commands.convert import main
from tests.checkpoints.folders import write_golden, write_small_llama, write_tokenizer
from tests.golden_recipe import load_case


# Soft caps and windows; layers without positions; longrope before its border and across it; heads 9 on 3.
@pytest.mark.parametrize(
    ("name", "prompts"), [("gemma2", [2]), ("smollm3", [1]), ("phi3_longrope", [1, 2]), ("smollm", [1])]
)
def test_dense_forward_equals_transformers(tmp_path: Path, name: str, prompts: list[int]) -> None:
    """1e-5 of the largest logit: what float32 sums in another order cost (the goldens' own float64 error is 1e-6)."""
    case = load_case(name)
    model = load_model(write_golden(tmp_path, name))
    for index in prompts:
        prompt, expected = case.prompts[index], case.logits[index]
        found = dense_logits(model, prompt)
        assert found.shape == expected.shape
        assert np.max(np.abs(found - expected)) / np.max(np.abs(expected)) <= 1e-5


def test_comparison_of_known_logits() -> None:
    theirs = [np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32))]
    ours = [np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], np.float32))]
    found = compare_logits(ours, theirs)
    assert (found.prompts, found.positions) == (1, 2)
    assert found.agreement == 0.5
    assert found.divergence == pytest.approx(0.5 * 0.25 * np.log(2), rel=1e-5)  # (0.5 ln 2 - 0.25 ln 2) on one of two
    assert found.error == pytest.approx(np.log(2) / np.log(5), rel=1e-5)
    same = compare_logits(theirs, theirs)
    assert (same.error, same.divergence, same.agreement) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"divergence": 0.02}, r"mean divergence \(nats\) is 0.02; the limit is 0.015"),
        ({"divergence": float("nan")}, "mean divergence"),
        ({"error": 2e-3}, "error of the logits is 0.002; the limit is 0.001"),
        ({"error": float("nan")}, "error of the logits"),
        ({"agreement": 0.98}, "top-1 agreement is 0.98; the limit is 0.99"),
    ],
)
def test_limits(changes: dict[str, float], word: str) -> None:
    good = verify.LogitComparison(prompts=1, positions=2, error=1e-6, divergence=1e-9, agreement=1.0)
    check_limits(Path("hf"), good, LIMITS["float32"])
    with pytest.raises(CheckpointError, match=word):
        check_limits(Path("hf"), dataclasses.replace(good, **changes), LIMITS["float32"])


class TransformersTokenizer:
    """Looks like a transformers tokenizer; answers as ours does, except for what a test changes."""

    def __init__(self, ours: Tokenizer, *, ids: Callable[[list[int]], list[int]] = list, text: str = "") -> None:
        self.ours, self.ids, self.text = ours, ids, text
        self.bos_token_id = ours.bos_token_id
        self.chat_template = ours.chat_template

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.ids(self.ours.encode(text, add_special_tokens=add_special_tokens))

    def apply_chat_template(
        self,
        chat: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        return_dict: bool = False,
    ) -> Any:
        if tokenize:
            return {"input_ids": self.ids(self.ours.encode_chat(chat, add_generation_prompt=add_generation_prompt))}
        return self.ours.render_chat(chat, add_generation_prompt=add_generation_prompt) + self.text


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return load_tokenizer(tmp_path)


def test_equal_tokenizers_are_counted(tokenizer: Tokenizer) -> None:
    found = compare_tokenizers(tokenizer, TransformersTokenizer(tokenizer))
    assert found == {"texts": len(verify.TEXTS), "chats": 2, "bos_in_text": 1, "bos_in_chat": 1}


def test_differing_ids_are_refused(tokenizer: Tokenizer) -> None:
    theirs = TransformersTokenizer(tokenizer, ids=lambda ids: [*ids, 0])
    with pytest.raises(CheckpointError, match=r"ids of 'Once upon.*\(add_special_tokens=True\): expected \[256"):
        compare_tokenizers(tokenizer, theirs)


def test_differing_chats_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match=r"chat 'Hello, who are you.': expected .*!', found"):
        compare_tokenizers(tokenizer, TransformersTokenizer(tokenizer, text="!"))


def test_differing_bos_and_lost_template_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = TransformersTokenizer(tokenizer)
    theirs.bos_token_id = 7
    with pytest.raises(CheckpointError, match="bos_token_id: expected 7, found 256"):
        compare_tokenizers(tokenizer, theirs)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"chat template: expected .*, found None"):
        compare_tokenizers(load_tokenizer(tmp_path), TransformersTokenizer(tokenizer))


def test_a_template_may_refuse_if_both_sides_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('needs a system message') }}")
    ours = load_tokenizer(tmp_path)
    with pytest.raises(ChatTemplateError):
        ours.render_chat([{"role": "user", "content": "x"}])
    assert compare_tokenizers(ours, TransformersTokenizer(ours))["chats"] == 0
    with pytest.raises(CheckpointError, match=r"expected '<s>.*found None"):
        compare_tokenizers(ours, TransformersTokenizer(tokenizer))


def no_transformers(name: str, package: str | None = None) -> Any:
    return None if name == "transformers" else importlib.machinery.ModuleSpec(name, None)


def test_without_transformers_the_stored_values_are_still_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify.importlib.util, "find_spec", no_transformers)
    lines: list[str] = []
    source = write_small_llama(tmp_path / "hf")
    convert(source, tmp_path / "out", verify=True, say=lines.append)
    verification = json.loads((tmp_path / "out" / REPORT_FILE).read_text())["verification"]
    assert verification == {"stored_checksums": "equal", "skipped": "transformers or torch is not installed"}
    assert any("not installed" in line for line in lines)


def test_a_value_that_was_stored_wrongly_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import checkpoints.convert as module

    def save_with_a_fault(folder: Path, params: dict[str, Any]) -> dict[str, int]:
        faulty = params["layers.1.attention.qkv.weight"].at[0, 0, 0, 0].add(1.0)
        return saved(folder, params | {"layers.1.attention.qkv.weight": faulty})

    saved = module.save_params
    monkeypatch.setattr(module, "save_params", save_with_a_fault)
    source = write_small_llama(tmp_path / "hf")
    assert main([str(source), str(tmp_path / "out"), "--verify"]) == 2
    error = capsys.readouterr().err
    assert "parameter layers.1.attention.qkv.weight: expected the values of model.layers.1.self_attn.q_proj" in error
    assert os.listdir(tmp_path) == ["hf"]


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, float], None]:
    """Puts stand-ins for torch and transformers in place: logits of our own direct load, scaled by a factor."""

    def install(source: Path, factor: float) -> None:
        class Stub:
            __version__ = "stub"
            AutoTokenizer = "AutoTokenizer"

        def logits(hf_dir: Path, architecture: str, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
            model = load_model(source)
            return [factor * dense_logits(model, prompt) for prompt in prompts]

        ours = load_tokenizer(source)
        monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setitem(sys.modules, "torch", Stub)
        monkeypatch.setitem(sys.modules, "transformers", Stub)
        monkeypatch.setattr(verify, "_from_transformers", lambda *_: TransformersTokenizer(ours))
        monkeypatch.setattr(verify, "_reference_logits", logits)

    return install


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verification_is_reported(tmp_path: Path, reference: Callable[[Path, float], None], dtype: str) -> None:
    source = write_small_llama(tmp_path / "hf")
    reference(source, 1.0)
    report = convert(source, tmp_path / "out", dtype=dtype, verify=True)
    assert report.verification is not None
    logits = report.verification["logits"]
    assert logits["prompts"] == verify.RANDOM_PROMPTS + len(verify.TEXTS)  # the empty text has a BOS
    assert logits["agreement"] > 0.9
    assert report.verification["limits"] == dataclasses.asdict(LIMITS[dtype])
    assert report.verification["tokenizer"]["bos_in_chat"] == 1
    if dtype == "float32":
        assert logits["error"] == 0.0
    else:
        assert 0.0 < logits["divergence"] < 0.015


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_network_fails_the_conversion(
    tmp_path: Path, reference: Callable[[Path, float], None], capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    """Logits half again as large, as a forgotten multiplier would make them."""
    source = write_small_llama(tmp_path / "hf")
    reference(source, 1.5)
    assert main([str(source), str(tmp_path / "out"), "--verify", "--dtype", dtype]) == 2
    assert "verification: mean divergence (nats) is" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["hf"]


def test_token_ids_beyond_the_model_are_refused(
    tmp_path: Path, reference: Callable[[Path, float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_golden(tmp_path / "hf", "llama")
    reference(source, 1.0)
    assert main([str(source), str(tmp_path / "out"), "--verify"]) == 2
    assert "the tokenizer gives id 257; expected ids below vocab_size 131" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["hf"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_transformers_itself(tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source = write_small_llama(tmp_path / "hf")
    assert main([str(source), str(tmp_path / "out"), "--verify", "--dtype", dtype]) == 0
    verification = json.loads((tmp_path / "out" / REPORT_FILE).read_text())["verification"]
    assert verification["tokenizer"]["chats"] == 2
    assert verification["logits"]["divergence"] < (1e-9 if dtype == "float32" else 0.015)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swapped_tensors_are_found_by_transformers(
    tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up in each other's place have the right names, shapes and coverage: only the numbers can tell."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    swap = {"gate": "up", "up": "gate"}
    table = tuple(
        dataclasses.replace(rule, transform=swap.get(rule.transform, rule.transform))
        for rule in rules.FAMILY_RULES["LlamaForCausalLM"]
    )
    monkeypatch.setattr(rules, "FAMILY_RULES", {"LlamaForCausalLM": table})
    source = write_small_llama(tmp_path / "hf")
    assert main([str(source), str(tmp_path / "out"), "--verify", "--dtype", dtype]) == 2
    assert "verification: mean divergence (nats) is" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["hf"]
