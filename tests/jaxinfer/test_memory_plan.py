"""`plan` against the engine it plans for, and its refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from checkpoints.load import load_model
from jaxinfer import memory_plan
from jaxinfer.config import ConfigError, ParallelConfig, RuntimeConfig
from jaxinfer.memory_plan import PlanReport, count_parameters, make_plan
from jaxinfer.model_path import demo_path
from jaxinfer.models.model import Model
from jaxinfer.models.registry import model_config
from jaxinfer.runtime import kv_cache
from jaxinfer.runtime.engine_builder import DRAWING_COPIES, choose_sizes, make_layout, make_runner
from jaxinfer.runtime.kv_cache import Sizes, gib
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.sharding import make_mesh
from pallas_kernels.dispatch import DeviceTarget
from serving.commands import plan as command
from tests.golden_recipe import load_case
from tests.jaxinfer.models import hub_configs

NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="module")
def loaded() -> Model:
    model = load_model(demo_path(), mesh=make_mesh())
    return dataclasses.replace(model, name="demo")


def test_plan_is_what_the_engine_takes(loaded: Model) -> None:
    mesh, runtime = make_mesh(), RuntimeConfig(max_num_seqs=8, max_num_batched_tokens=16, max_model_len=256)
    report = make_plan("demo", loaded.config, runtime, mesh)
    leaves = jax.tree.leaves(loaded.params)
    assert report.weight_bytes == sum(leaf.nbytes for leaf in leaves)
    assert report.parameters == report.active_parameters == sum(leaf.size for leaf in leaves)
    layout = make_layout(loaded, DeviceTarget.of(mesh.devices.flat[0]), runtime)
    sizes = choose_sizes(loaded, mesh, runtime, layout)
    assert (report.sizes.num_pages, report.sizes.max_model_len) == (sizes.num_pages, 256)
    pool = sum(array.nbytes for array in layout.zeros(sizes.num_pages)) * loaded.config.num_layers
    assert report.pool_bytes == pool
    assert report.temporary_bytes > 0


@pytest.mark.longer
def test_a_plan_compiles_one_program_on_a_cpu(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[jax.stages.Lowered] = []

    def compile_(lowered: jax.stages.Lowered, *arguments: object) -> jax.stages.Compiled:
        compiled.append(lowered)
        return original(lowered, *arguments)

    original = jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    report = make_plan("demo", loaded.config, RuntimeConfig(max_num_seqs=8, max_num_batched_tokens=16), make_mesh())
    assert len(compiled) == 1
    assert report.bucket == "step[16 tokens, 8 rows]"


@pytest.mark.longer
@pytest.mark.parametrize("rows", [8, 64])
def test_what_draws_needs_no_more_than_a_plan_says(loaded: Model, rows: int) -> None:
    mesh, runtime = make_mesh(), RuntimeConfig(max_num_seqs=rows, max_num_batched_tokens=rows, num_pages=20)
    layout = make_layout(loaded, DeviceTarget.of(mesh.devices.flat[0]), runtime)
    runner = make_runner(loaded, mesh, runtime, choose_sizes(loaded, mesh, runtime, layout), layout)
    said = DRAWING_COPIES * rows * loaded.shape.vocab * 4
    for program in (runner.programs.draw(rows), runner.programs.score()):
        memory = program.compile().memory_analysis()
        need = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        assert 0 < need <= said


@pytest.mark.longer
def test_tensor_parallel_halves_weights_and_pool(loaded: Model) -> None:
    runtime = {"max_num_seqs": 8, "max_num_batched_tokens": 8, "num_pages": 20, "max_model_len": 256}
    one = make_plan("demo", loaded.config, RuntimeConfig(**runtime), make_mesh())
    split = RuntimeConfig(tensor_parallel_size=2, **runtime)
    two = make_plan("demo", loaded.config, split, make_mesh(split.parallel))
    assert two.pool_bytes * 2 == one.pool_bytes
    assert 0.5 <= two.weight_bytes / one.weight_bytes < 0.51  # norms are on both
    # Two of each layer and one for the embedding, of 8 tokens in float32; of two devices each sends as much as it gets.
    config = loaded.config
    count = 2 * config.num_layers + 1
    size = gib(count * 8 * config.hidden_size * 4)
    assert two.collectives == f"{count} all-reduce ({size}) in the largest step, in which each device sends {size}"
    assert one.collectives == ""
    assert ("collectives", two.collectives) in two.rows()


def test_refusals(loaded: Model, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 3; .* must be one of \[1, 2, 4\]"):
        make_plan("demo", loaded.config, RuntimeConfig(tensor_parallel_size=3), make_mesh(ParallelConfig(tensor=3)))
    assert command.main(["--num-pages", "3", "--max-model-len", "512"], hub_cache=NOWHERE) == 2
    error = capsys.readouterr().err
    assert "max_model_len is 512, but the KV pool holds 128 tokens (num_pages = 3)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("pages", "length", "right"),
    [
        (41, 130, 4),  # 640 tokens and yet not 4.9 requests: each takes 9 pages
        (41, 129, 5),  # the last token's KV is never needed: 8 pages
        (41, 128, 5),
        (9, 129, 1),
        (80, 64, 8),  # slots are what limits
        (2, 1, 1),
    ],
)
def test_full_length_requests_are_counted_in_pages(pages: int, length: int, right: int) -> None:
    sizes = Sizes(length, 8, 8, 16, pages, 1, pages * 16, ())
    report = PlanReport("m", "cpu", 1, 1, 1, 1, 1, 1, 1, sizes, "b")
    assert report.full_length_requests == right
    assert dict(report.rows())["full-length requests at once"] == str(right)
    scheduler = Scheduler(SchedulerLimits(8, 2048, length), PagePool(pages, 16))
    if length < 2:
        return
    held = 0  # as the scheduler's own check counts: requests until their pages are more than there are
    while held < 8 and (held + 1) * scheduler.kv.needs(length - 1) <= scheduler.pool.usable_pages:
        held += 1
    assert held == right


# Billions, as published; of the active ones some publishers leave out the embedding, or the output matrix, too.
PUBLISHED = {
    "Mixtral-8x7B": (46.7, 12.9, 0),
    "Qwen3-30B-A3B": (30.5, 3.3, 0),
    "GLM-4.5-Air": (106, 12, 2),
    "gpt-oss-20b": (20.9, 3.6, 1),
    "gpt-oss-120b": (116.8, 5.1, 1),
    "Qwen3-8B": (8.2, 8.2, 0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.longer] * (name != "gpt-oss-20b")) for name in PUBLISHED]
)
def test_active_parameters_are_the_published_ones(name: str) -> None:
    config = model_config(hub_configs.ALL[name])
    everything, of_a_token = count_parameters(config)
    total, active, left_out = PUBLISHED[name]
    of_a_token -= left_out * config.vocab_size * config.hidden_size
    rounded = 0.06 if isinstance(total, float) else 1
    assert everything / 1e9 == pytest.approx(total, abs=rounded)
    assert of_a_token / 1e9 == pytest.approx(active, abs=rounded)


def test_what_does_not_fit_is_refused_with_the_missing_bytes(
    loaded: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kv_cache, "free_host_bytes", lambda: 1 << 20)
    assert command.main(["--compilation-cache-dir", "none"], hub_cache=NOWHERE) == 2
    missing = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params)) - (1 << 20)
    assert f"does not fit: {gib(missing)} ({missing:,} bytes) are missing" in capsys.readouterr().err


@pytest.mark.longer
def test_a_pool_that_was_sized_by_hand_counts_too(loaded: Model) -> None:
    """Weights, slots, temporaries and the pool together, against a device that says nothing of itself."""
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 8, "max_model_len": 256}
    runtime = RuntimeConfig(num_pages=100, **sizes)
    plan = make_plan("demo", loaded.config, runtime, make_mesh(), memory=1 << 40)
    assert plan.total_bytes == plan.weight_bytes + plan.slot_bytes + plan.temporary_bytes + plan.pool_bytes
    assert dict(plan.rows())["total"] == f"{gib(plan.total_bytes)} of 1024.00 GiB"
    enough = make_plan("demo", loaded.config, runtime, make_mesh(), memory=plan.total_bytes)
    assert enough.memory_bytes == plan.total_bytes
    with pytest.raises(ConfigError, match=r"does not fit: 0\.0 MiB \(1 bytes\) are missing: .* for 100 pages"):
        make_plan("demo", loaded.config, runtime, make_mesh(), memory=plan.total_bytes - 1)


def test_memory_of_a_device_that_is_not_here(loaded: Model, capsys: pytest.CaptureFixture[str]) -> None:
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    arguments = ["--device-memory", "0.001", "--compilation-cache-dir", "none"]
    assert command.main(arguments, hub_cache=NOWHERE) == 2
    assert f"({weights - int(0.001 * (1 << 30)):,} bytes) are missing" in capsys.readouterr().err
    assert command.main(["--device-memory", "-1"], hub_cache=NOWHERE) == 2
    assert "device_memory is -1.0; it must be a number of GiB, above 0" in capsys.readouterr().err
    assert command.main(["--topology", "v5e:2x4", "--tensor-parallel-size", "8"], hub_cache=NOWHERE) == 2
    assert "tensor_parallel_size is 8; it cannot go with a topology, which says it" in capsys.readouterr().err


def test_command_prints_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a table and as JSON, of a model with experts, from config.json alone: there are no weights."""
    config = load_case("mixtral").config
    (tmp_path / "config.json").write_text(json.dumps(config))
    made: list[PlanReport] = []

    def make_once(*args: Any, **more: Any) -> PlanReport:
        made.extend([] if made else [make_plan(*args, **more)])
        return made[0]

    monkeypatch.setattr(memory_plan, "make_plan", make_once)
    arguments = [
        str(tmp_path),
        "--max-num-seqs",
        "8",
        "--max-num-batched-tokens",
        "8",
        "--compilation-cache-dir",
        "none",
    ]
    assert command.main(arguments, hub_cache=NOWHERE) == 0
    printed = capsys.readouterr().out
    for label in ("active parameters", "weights", "temporaries", "KV per token", "KV pool", "longest request", "total"):
        assert label in printed
    assert command.main([*arguments, "--json"], hub_cache=NOWHERE) == 0
    report = json.loads(capsys.readouterr().out)
    expert = 3 * config["hidden_size"] * config["intermediate_size"]
    idle = config["num_local_experts"] - config["num_experts_per_tok"]
    assert report["parameters"] - report["active_parameters"] == config["num_hidden_layers"] * idle * expert
    assert report["weight_bytes"] == 4 * report["parameters"]
