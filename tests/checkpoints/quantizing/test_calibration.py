"""Calibration finds what it is to find, and the converted model gains by it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints.convert import convert
from checkpoints.files import REPORT_FILE, CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import canonical_shapes, load_model
from checkpoints.quantizing.options import Quantizing
from checkpoints.quantizing.policy import Planned
from checkpoints.quantizing.rounding import RATIOS, best_clip, decibels, round_matrix
from checkpoints.quantizing.samples import MAX_SAMPLES, read_samples
from checkpoints.quantizing.search import OutputError, search
from checkpoints.quantizing.statistics import SAMPLED_ROWS, InputStatistics, sampled_tokens
from checkpoints.quantizing.verify import StoredModel
from checkpoints.storage import read_storage
from checkpoints.tensor_assembly import DTYPES
from checkpoints.verify import dense_logits
from jaxinfer.config import ConfigError
from pallas_kernels.qtensor import dequantize
from tests.checkpoints.folders import edit_tensors, tree, write_small_llama
from tests.checkpoints.quantizing.models import write_family, write_samples

pytestmark = pytest.mark.longer

PROMPTS = [[3, 17, 5, 60, 2, 41, 9, 30, 11], [84, 104, 101, 32, 113, 117, 105, 99, 107]]


def file_logits(folder: Path) -> np.ndarray:
    """What a converted checkpoint means, without what a device adds."""
    config, _ = read_config(folder)
    shapes = canonical_shapes(config, DTYPES[config.dtype])
    model = StoredModel(folder, config, shapes, read_storage(folder, config).matrices)
    return np.concatenate(model.logits(PROMPTS))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("llama", "w8a8"),
        pytest.param("llama", "int4", marks=pytest.mark.slow),
        ("gemma2", "int4"),
    ],
)
def test_a_model_with_outliers_gains(tmp_path: Path, family: str, scheme: str) -> None:
    """A few channels are thirty times the others: those must not lose their steps to them."""
    source = write_family(tmp_path / "hf", family, outliers=30.0)
    samples = write_samples(tmp_path / "samples.txt")
    convert(source, tmp_path / "plain", quantizing=Quantizing(scheme))
    report = convert(source, tmp_path / "calibrated", quantizing=Quantizing(scheme, calibrate=samples))
    model = load_model(source)
    dense = np.concatenate([dense_logits(model, prompt) for prompt in PROMPTS])
    plain, calibrated = (relative(file_logits(tmp_path / name), dense) for name in ("plain", "calibrated"))
    assert 0 < calibrated < 0.8 * plain
    assert report.quantization is not None
    for row in report.quantization.matrices:
        assert row.output_snr is not None
        assert row.plain_output_snr is not None
        assert row.output_snr >= row.plain_output_snr
    assert any(row.alpha is not None for row in report.quantization.matrices)
    served = load_model(tmp_path / "calibrated")  # int8 by int8 on a CPU
    assert relative(np.concatenate([dense_logits(served, prompt) for prompt in PROMPTS]), dense) < 1.5 * plain


def test_search_against_the_definition() -> None:
    """The error that is reported is that of the product as it will be computed; channels that matter get finer
    steps."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, 64), dtype=np.float32)
    x = random.standard_normal((200, 64), dtype=np.float32)
    x[:, 7] *= 50
    statistics = InputStatistics()
    for part in np.split(x, 4):
        statistics.add(part, np.arange(len(part)))
    np.testing.assert_allclose(statistics.mean, np.abs(x).mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(statistics.largest, np.abs(x).max(axis=0))
    planned = Planned("int4", 32)
    found = search(statistics, weight, OutputError(statistics.rows, weight), planned, (1, 1, 64), powers=False)
    assert found.scales is not None
    assert found.scales[7] == found.scales.max() > 3 * np.median(found.scales)
    assert found.error < 0.3 * found.plain_error
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    got = (x / found.scales) @ np.asarray(dequantize(round_matrix(weight * found.scales, planned, found.clip))).T
    assert np.sum((got - exact) ** 2) / np.sum(exact**2) == pytest.approx(found.error, rel=1e-2)
    powers = search(statistics, weight, OutputError(statistics.rows, weight), planned, (1, 1, 64), powers=True)
    assert powers.scales is not None
    np.testing.assert_array_equal(np.log2(powers.scales) % 1, 0)
    shared = search(statistics, weight, OutputError(statistics.rows, weight), planned, (2, 4, 8), powers=False)
    assert shared.scales is not None
    np.testing.assert_array_equal(shared.scales.reshape(2, 4, 8), shared.scales.reshape(2, 4, 8)[:, :1].repeat(4, 1))


def test_rows_that_stay_dense_are_divided_exactly(tmp_path: Path) -> None:
    """`gate_up` keeps bfloat16: up rows are divided by powers of two, gate rows are as they were."""
    source = write_family(tmp_path / "hf", outliers=30.0)
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\nmatch = '.*(gate_up|qkv|out)'\nuse = 'keep'\n")
    asked = Quantizing("w8a8", policy=rules, calibrate=write_samples(tmp_path / "samples.txt"))
    report = convert(source, tmp_path / "out", dtype="bfloat16", quantizing=asked)
    assert report.quantization is not None
    assert report.quantization.matrices[-1].alpha is not None
    plain, scaled = (
        np.asarray(load_model(folder, dtype="bfloat16").params["layers"][0]["mlp"]["gate_up"]["weight"], np.float64)
        for folder in (source, tmp_path / "out")
    )
    np.testing.assert_array_equal(scaled[0], plain[0])
    exponents = np.log2(plain[1] / scaled[1])
    np.testing.assert_array_equal(exponents, np.broadcast_to(np.round(exponents[:, :1]), exponents.shape))
    assert len(np.unique(exponents)) > 1


def test_dead_channels_have_finite_scales() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 32), dtype=np.float32)
    weight[:, 3] = 0
    x = np.random.default_rng(1).standard_normal((40, 32), dtype=np.float32)
    x[:, 5], x[:, 6] = 0, 0
    x[:, 0] *= 90
    for rows in (x, np.zeros_like(x)):
        statistics = InputStatistics()
        statistics.add(rows, np.arange(40))
        for scheme in ("int4", "w8a8"):
            planned = Planned(scheme, 32 if scheme == "int4" else None)
            found = search(statistics, weight, OutputError(rows, weight), planned, (1, 1, 32), powers=False)
            assert np.isfinite(found.error)
            assert found.scales is None or (np.isfinite(found.scales).all() and (found.scales > 0).all())


def test_cut_offs_are_the_best_of_the_grid() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((6, 64), dtype=np.float32)
    weight[2, 40] = 9.0
    importance = np.where(np.arange(64) == 40, 1e-3, 1.0).astype(np.float32)
    chosen = np.asarray(best_clip(weight, importance, 32))
    losses = np.stack(
        [
            (importance * (np.asarray(dequantize(round_matrix(weight, Planned("int4", 32), clip))) - weight) ** 2)
            .reshape(6, 2, 32)
            .sum(-1)
            for clip in (np.full((6, 2), index, np.uint8) for index in range(len(RATIOS)))
        ]
    )
    np.testing.assert_allclose(np.take_along_axis(losses, chosen[None].astype(int), 0)[0], losses.min(0), rtol=1e-5)
    assert chosen[2, 1] == len(RATIOS) - 1


def test_sampled_tokens_are_drawn_evenly_and_the_same() -> None:
    lengths = [300, 7, 400, 512, 1]
    drawn = sampled_tokens(lengths)
    assert sum(map(len, drawn)) == SAMPLED_ROWS
    for kept, length in zip(drawn, lengths, strict=True):
        assert len(set(kept.tolist())) == len(kept)
        assert all(0 <= token < length for token in kept)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, sampled_tokens(lengths), strict=True))
    assert [len(kept) for kept in sampled_tokens([3, 4])] == [3, 4]


@pytest.mark.parametrize("scheme", ["fp8", pytest.param("int4", marks=pytest.mark.longer)])
def test_skip_auto_keeps_the_worst_wider(tmp_path: Path, scheme: str) -> None:
    """One matrix is of the worst kind for its scheme. int4: a weight of each group is twelve times the others. fp8: all
    but one of a row lie in the middle between two numbers."""
    source = write_small_llama(tmp_path / "hf", layers=3, hidden=64, mlp=96)
    name = "model.layers.1.mlp.down_proj.weight"
    random = np.random.default_rng(0)
    if scheme == "int4":
        weight = random.standard_normal((64, 96), dtype=np.float32)
        np.put_along_axis(weight.reshape(64, 3, 32), random.integers(0, 32, (64, 3, 1)), 12.0, 2)
    else:
        weight = 1.0625 * random.choice([-1, 1], (64, 96)).astype(np.float32)
        weight[:, 0] = 1.75
    edit_tensors(source, {name: weight})
    options = Quantizing(scheme, skip="auto", calibrate=write_samples(tmp_path / "samples.txt"))
    if scheme == "fp8":  # without samples: ranked by weights
        options = replace(options, calibrate=None)
    report = convert(source, tmp_path / "out", quantizing=options)
    assert report.quantization is not None
    kept = {row.name: (row.asked, row.scheme) for row in report.quantization.matrices if row.asked is not None}
    expected = {"int4": ("int4", "int8"), "fp8": ("fp8", "keep")}[scheme]
    assert kept == {"layers.1.mlp.down": expected}
    written = json.loads((tmp_path / "out" / REPORT_FILE).read_text())["quantization"]
    assert written["totals"]["skipped"] == ["layers.1.mlp.down"]
    stored = read_storage(tmp_path / "out", read_config(tmp_path / "out")[0]).matrices
    assert ("layers.1.mlp.down.weight" in stored) == (scheme == "int4")
    load_model(tmp_path / "out")


def samples_of(tmp_path: Path, text: str, name: str = "samples.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_samples_of_both_kinds(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path / "hf")
    config, _ = read_config(folder)
    texts = read_samples(samples_of(tmp_path, f"{'a' * 70}\n\nbc\n{'d' * 500}\n"), folder, config)
    assert [len(ids) for ids in texts.ids] == [71, 3, config.max_position_embeddings]
    assert (texts.offered, texts.cut) == (3, 1)
    lines = [{"text": "a" * 70}, {"messages": [{"role": "user", "content": "b" * 30}]}]
    chats = read_samples(samples_of(tmp_path, "\n".join(map(json.dumps, lines)), "s.jsonl"), folder, config)
    assert chats.ids[0] == texts.ids[0]
    assert chats.ids[1].count(ord("b") - 33) == 30 or len(chats.ids[1]) > 30
    many = read_samples(samples_of(tmp_path, "abc\n" * 300), folder, config)
    assert (len(many.ids), many.offered) == (MAX_SAMPLES, 300)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.txt", "short\n", "s.txt: expected at least 64 tokens to calibrate with; found 6 in 1 samples"),
        ("s.txt", "", "expected at least 64 tokens to calibrate with; found 0 in 0 samples"),
        ("s.jsonl", '{"text": "a"}\n{"text": ', "s.jsonl:2: expected JSON; found a fault"),
        ("s.jsonl", '{"prompt": "a"}', "s.jsonl:1: expected an object with either text or messages; found"),
        ("s.jsonl", '{"text": 3}', "s.jsonl:1: text is 3; expected a string"),
        ("s.jsonl", '{"messages": []}', "s.jsonl:1: messages is []; expected a list of objects"),
        ("s.jsonl", '{"messages": [{"content": "a"}]}', "s.jsonl:1: cannot be tokenized"),
        ("s.jsonl", '{"text": "\\ud800"}', "s.jsonl:1: cannot be tokenized"),
    ],
)
def test_samples_that_cannot_be_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    source = write_small_llama(tmp_path / "hf")
    path = samples_of(tmp_path, text, name)
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        convert(source, tmp_path / "out", quantizing=Quantizing("int8", calibrate=path))
    assert tree(tmp_path) == before
    with pytest.raises(CheckpointError, match=r"none\.txt: cannot be read"):
        convert(source, tmp_path / "out", quantizing=Quantizing("int8", calibrate=tmp_path / "none.txt"))


@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, calibrated: bool) -> None:
    source = write_family(tmp_path / "hf")
    edit_tensors(source, {"model.layers.0.self_attn.o_proj.weight": np.full((128, 128), np.nan, np.float32)})
    samples = write_samples(tmp_path / "samples.txt") if calibrated else None
    before = tree(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"hf: parameter layers\.0\.attention\.out\.weight holds values that are not"
    ):
        convert(source, tmp_path / "out", quantizing=Quantizing("int8", calibrate=samples))
    assert tree(tmp_path) == before


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = write_family(tmp_path / "hf")
    edit_tensors(source, {"model.layers.0.input_layernorm.weight": np.full(128, np.inf, np.float32)})
    with pytest.raises(
        CheckpointError, match=r"the calibration samples give layers\.0\.attention\.qkv inputs that are"
    ):
        convert(
            source, tmp_path / "out", quantizing=Quantizing("int8", calibrate=write_samples(tmp_path / "samples.txt"))
        )


def test_an_int4_matrix_without_a_group_is_refused(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "hf")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.down has 48 inputs on a device; one of 128, 64, 32 must"):
        convert(source, tmp_path / "out", quantizing=Quantizing("int4"))
    assert tree(tmp_path) == before


def test_decibels() -> None:
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0.0) is None
