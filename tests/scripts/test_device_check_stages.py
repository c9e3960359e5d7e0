"""The stages of `scripts/device_check.py` and what they print: limits, facts, targets, traces, runs that were cut."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as `python scripts/device_check.py` has it


from device_checks import carried, facts, product_cases, stages, targets  # noqa: E402
from device_checks.attention_cases import attention_cases  # noqa: E402
from device_checks.engine_sizes import engine_sizes  # noqa: E402
from device_checks.fact_readers import name_of, slug  # noqa: E402
from device_checks.records import FILE, Records  # noqa: E402
from device_checks.report import render  # noqa: E402
from device_checks.sections import Section  # noqa: E402
from device_checks.settings import Settings  # noqa: E402

PROBE = {"section": "probe", "case": "device", "status": "ok", "platform": "gpu", "stage": 1}
CEILING = {"section": "ceilings/jax", "case": "copy", "status": "ok", "copy_bytes_per_second": 4e12, "stage": 1}
STEP = {"section": "engine/steps", "case": "compiled decode step, rows: 32", "status": "ok", "rows": 32, "depth": 1152,
        "floor_bytes": 16e9, "op_seconds": 4.8e-3, "call_seconds": 1e-4, "stage": 1}  # fmt: skip
REAL = Settings(Path(), Path())


def told(*records: dict[str, Any]) -> dict[str, str]:
    return facts.facts_in("".join(fact.lines() for fact in facts.facts(records)))


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_limits_of_stages_fit(platform: str) -> None:
    """On a machine that knows nothing yet each stage fits, and on a warm one all of them together."""
    alone = {stage: _seconds(stages.sections_of(stage, ()), platform) for stage in stages.STAGES}
    assert all(seconds <= stages.STAGE_SECONDS == 240 for seconds in alone.values()), alone
    first = {section.name for section in stages.FIRST}
    warm = alone[1] + sum(_seconds(stages.sections_of(stage, first), platform) for stage in (2, 3))
    assert warm <= stages.ALL_SECONDS == 600
    for found in stages.STAGES.values():
        assert all(section.case_seconds <= section.seconds for section in found)


def _seconds(sections: list[Section], platform: str) -> float:
    return sum(section.seconds for section in sections if platform in section.platforms)


def test_no_case_is_in_two_stages() -> None:
    """Results of stages are told together."""
    both = attention_cases(REAL, "first") + attention_cases(REAL, "more")
    assert sorted(case.name for case in both) == sorted(case.name for case in attention_cases(REAL))
    parts = [engine_sizes(REAL, part) for part in ("steps", "wide")]
    assert not set(parts[0].rows) & set(parts[1].rows)
    assert [part.budget for part in parts] == [0, 2048]
    for found in stages.STAGES.values():
        for section in found:
            assert Section.from_json(section.to_json()) == section


def test_the_first_cases_are_those_with_targets() -> None:
    named = {f"attention.mosaic_gpu.{slug(case.name)}" for case in attention_cases(REAL, "first")}
    assert named < set(targets.targets_of("gpu"))


# -- facts ------------------------------------------------------------------------------------------------------------


def test_a_fact_is_a_line_with_its_share_and_verdict() -> None:
    assert told(PROBE, CEILING, STEP)["step.bfloat16.32_rows"] == "FACT step.bfloat16.32_rows 4.8ms 83% ok"
    slower = STEP | {"op_seconds": 6e-3}
    assert told(PROBE, CEILING, slower)["step.bfloat16.32_rows"] == "FACT step.bfloat16.32_rows 6ms 67% miss"
    assert told(PROBE, STEP)["step.bfloat16.32_rows"] == "FACT step.bfloat16.32_rows 4.8ms - no target"
    rehearsed = PROBE | {"rehearsal": True}
    assert told(rehearsed, CEILING, slower)["step.bfloat16.32_rows"].endswith("67% no target")


def test_a_factor_is_judged_by_itself() -> None:
    ours = {
        "section": "engine/wide",
        "case": "requests: 32",
        "status": "ok",
        "output_tokens": 8192,
        "wall_seconds": 2.0,
    }
    peer = ours | {"section": "engine/transformers", "wall_seconds": 5.0}
    assert told(ours, peer)["requests.over_transformers_32"] == "FACT requests.over_transformers_32 2.50x 83% miss"
    assert told(ours, peer | {"wall_seconds": 6.0})["requests.over_transformers_32"].endswith("3.00x 100% ok")


def test_what_has_no_figure_says_why() -> None:
    wrong = {"section": "correctness", "case": "paged_attention.mosaic_gpu.int8-kv", "status": "crashed",
             "error": "killed by\nSIGSEGV"}  # fmt: skip
    refused = wrong | {"status": "unsupported", "error": "no such card"}
    lines = "".join(fact.lines() for fact in facts.facts([wrong]))
    name = "correctness.paged_attention.mosaic_gpu.int8-kv"
    assert lines == f"FACT {name} crashed - miss\nWHY {name} killed by SIGSEGV\n"
    assert told(refused)[name].endswith("unsupported - no target")
    off = wrong | {"status": "ok", "deviation": 0.05, "tolerance": 0.04}
    assert told(off)[name] == f"FACT {name} 5.0e-02 125% miss"
    assert told(off | {"deviation": 0.01})[name] == f"FACT {name} 1.0e-02 25% ok"
    absent = {"section": "served", "case": "section", "status": "skipped", "error": "grpc_health: not installed"}
    assert told(absent)["served"] == "FACT served left_out - no target"
    begun = STEP | {"status": "begin"}
    assert told(begun) == {}


def test_every_target_can_be_read() -> None:
    """Each is the name of a fact that some case of the check has."""
    attention = {f"attention.mosaic_gpu.{slug(case.name)}" for case in attention_cases(REAL)}
    rows = {rows for part in ("whole", "steps", "wide") for rows in engine_sizes(REAL, part).rows}
    steps = {f"step.{scheme}.{count}_rows" for scheme in ("bfloat16", "int8", "int4", "fp8") for count in rows}
    products = {f"products.best.{slug(case.name)}" for case in product_cases.product_cases(REAL)}
    readable = attention | steps | products
    readable |= {f"attention.mosaic_gpu.speedup_of_{kind}_kv" for kind in ("int8", "fp8")}
    readable |= {f"products.speedup_of_{scheme}" for scheme in ("w8a8", "fp8-dynamic")}
    readable |= {f"requests.over_transformers_{count}" for count in engine_sizes(REAL, "wide").requests}
    assert set(targets.targets_of("gpu")) <= readable
    assert len(targets.targets_of("gpu")) == len(targets.TARGETS)
    assert "attention.mosaic_tpu.prefill_1_x_8192" in targets.targets_of("tpu")


def test_the_table_of_targets_has_predictions_apart_from_readings() -> None:
    text = render([PROBE, CEILING, STEP], REAL)
    assert "| Llama-3-8B decode step, 32 rows, of its byte floor | 83 % | 80 % | 60 to 74 % | ok |" in text
    assert "| Llama-3-8B decode step, 8 rows, of its byte floor | - | 80 % | 60 to 74 % | not read |" in text


def test_names_have_no_spaces() -> None:
    for case in (*attention_cases(REAL), *product_cases.product_cases(REAL)):
        name = name_of({"section": "attention/mosaic_gpu", "case": case.name})
        assert re.fullmatch(r"[a-z0-9_.-]+", name), name


def test_only_news_are_told(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = Records(tmp_path, 1, facts.tell)
    for record in (PROBE | {"device_kind": "NVIDIA H200"}, STEP, CEILING):
        fields = {k: v for k, v in record.items() if k not in ("section", "case", "status", "stage")}
        records.add(record["section"], record["case"], record["status"], **fields)
    out = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in out] == [
        "machine.device_kind", "step.bfloat16.32_rows", "step.bfloat16.32_rows.host_call",
        "step.bfloat16.32_rows", "ceilings.jax.copy",  # with the ceiling the step is told again, with its share
    ]  # fmt: skip
    assert out[0] == "FACT machine.device_kind NVIDIA_H200 - no target"
    assert all(record["stage"] == 1 for record in records.read())


# -- what a stage takes over ------------------------------------------------------------------------------------------


def test_a_stage_keeps_what_others_read(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "out", tmp_path / "cache", stage=2)
    for folder in (settings.out, settings.cache):
        folder.mkdir()
    kept = [PROBE, CEILING, STEP | {"status": "begin"}, CEILING | {"section": "quantized/int8", "stage": 2}]
    (settings.cache / FILE).write_text("".join(json.dumps(record) + "\n" for record in kept) + '{"section": "to')
    found = carried.begin(settings)
    assert found == Records(settings.out).read() == [PROBE, CEILING, STEP | {
        "status": "skipped", "error": "the run ended in the middle of it",
    }]  # fmt: skip
    assert carried.told(found) == {"probe", "ceilings/jax"}
    assert stages.sections_of(2, carried.told(found))[0].name == "engine/wide"
    Records(settings.out, 2).add("engine/wide", "start-up", "ok")
    carried.keep(settings)
    assert (settings.cache / FILE).read_text() == (settings.out / FILE).read_text()
    old = time.time() - 7 * 3600
    for folder in (settings.out, settings.cache):
        os.utime(folder / FILE, (old, old))
    assert carried.begin(settings) == []


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("a-1.0-py3-none-any.whl", True),
        ("a-1.0-py2.py3-none-any.whl", True),
        ("a-1.0-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("a-1.0-cp{0}{1}-cp{0}{1}-manylinux2014_x86_64.whl", True),
        ("a-1.0-cp27-cp27m-manylinux2014_x86_64.whl", False),
    ],
)
def test_wheels_for_this_python_are_unpacked(name: str, used: bool, tmp_path: Path) -> None:
    import device_check

    settings = Settings(tmp_path, tmp_path / "cache", wheels=tmp_path)
    (tmp_path / "cache" / "wheels" / "earlier").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / name.format(*sys.version_info), "w") as wheel:
        wheel.writestr("a/__init__.py", "")
    device_check.unpack_wheels(settings)
    assert (tmp_path / "cache" / "wheels" / "a" / "__init__.py").exists() == used
    assert not (tmp_path / "cache" / "wheels" / "earlier").exists()


# -- what is served ---------------------------------------------------------------------------------------------------


def test_a_repeated_checkpoint_is_one_of_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from device_checks import served_step
    from make_random_model import tensor_shapes
    from model_shapes import SHAPES
    from safetensors.numpy import load_file

    monkeypatch.setattr(served_step, "_REPEATED", 1 << 12)
    served_step.write_repeated("tiny", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == dict(tensor_shapes(SHAPES["tiny"]))
    for tensor in tensors.values():
        values = tensor.astype("float32")
        assert (values == 1).all() if values.ndim == 1 else 0.019 < values.std() < 0.021
    assert SHAPES[served_step.SHAPE]["model_type"] == "llama"
    assert (tmp_path / "model" / "tokenizer.json").exists()


# -- the trace --------------------------------------------------------------------------------------------------------


def plane(name: str, *lines: tuple[str, list[tuple[str, int, int]]]) -> str:
    """A plane of lines of (event, start, end) in microseconds, as XLA's profiler writes it."""
    names = sorted({event for _, events in lines for event, _, _ in events})
    text = f'planes {{ name: "{name}" '
    for number, event in enumerate(names, 1):
        text += f'event_metadata {{ key: {number} value {{ id: {number} name: "{event}" }} }} '
    for line, events in lines:
        text += f'lines {{ name: "{line}" '
        for event, start, end in events:
            text += (
                f"events {{ metadata_id: {names.index(event) + 1} offset_ps: {start * 10**6} "
                f"duration_ps: {(end - start) * 10**6} }} "
            )
        text += "} "
    return text + "} "


def test_a_gpus_trace_is_summarised(tmp_path: Path) -> None:
    """Two steps: streams count, lines that are derived from them do not; the host's launches are counted."""
    from device_checks import step_trace
    from jax.profiler import ProfileData

    kernels = [("attend", 0, 40), ("gemm.1", 50, 100), ("attend", 120, 160), ("gemm.2", 160, 200)]
    text = plane("/device:GPU:0", ("Stream #13(Compute)", kernels), ("XLA Ops", kernels), ("Steps", [("1", 0, 200)]))
    text += plane("/host:CPU", ("python", [("cuGraphLaunch", 0, 1), ("cuGraphLaunch_ptsz", 5, 6),
                                           ("cuLaunchKernelEx", 7, 8), ("compile", 9, 10)]))  # fmt: skip
    text += plane("/device:GPU:1", ("Stream #13(Compute)", [("attend", 0, 400)]))
    (tmp_path / "a.xplane.pb").write_bytes(ProfileData.text_proto_to_serialized_xspace(text))
    found = step_trace.summary(tmp_path, 2, "gpu")
    assert found["span_ms"] == pytest.approx(0.1)
    assert found["gap_ms"] == pytest.approx(0.015)
    assert found["kernels_a_step"] == 2
    assert [(each["operation"], each["calls"]) for each in found["kernels"]] == [("gemm", 1), ("attend", 1)]
    assert found["kernels"][0]["milliseconds"] == pytest.approx(0.045)
    assert [(g["after"], g["before"], g["calls"]) for g in found["gaps"]] == [
        ("gemm.1", "attend", 0.5), ("attend", "gemm.1", 0.5),
    ]  # fmt: skip
    assert (found["graph_launches_a_step"], found["kernel_launches_a_step"]) == (1, 0.5)
    record = {"section": "engine/steps", "case": "trace, rows: 32", "status": "ok", "depth": 1152, **found}
    name = "engine.steps.trace_rows_32"
    assert told(record)[f"{name}.01.gemm"] == f"FACT {name}.01.gemm 0.0450ms_in_1.0 45% no target"
    assert told(record)[f"{name}.graph_launches"] == f"FACT {name}.graph_launches 1.00_a_step - no target"
    assert "0.015 ms without any (15%), 1.00 launches of graphs" in render([record], REAL)


def test_a_trace_without_the_device_is_refused() -> None:
    """The host's threads name operations on a GPU, too."""
    from device_checks import step_trace

    from serving.bench.trace import Event, NoTrace

    events = [Event("fusion", "jit_step", "/host:CPU python 0", 0, 1)]
    with pytest.raises(NoTrace, match="no operation of the device"):
        step_trace.on_device(events, "gpu")
    assert step_trace.on_device(events, "cpu") == events


@pytest.mark.longer
def test_xla_knows_the_flags_that_are_compared() -> None:
    """A flag that this XLA has no more would cost its place in the check."""
    import jax
    from device_checks.xla_flags import FLAGS

    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert len({flag.name for flag in FLAGS}) == len(FLAGS) >= 4
    for flag in FLAGS:
        assert flag.why
        lowered.compile(compiler_options=flag.options)
