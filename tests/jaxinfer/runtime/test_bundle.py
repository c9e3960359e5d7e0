"""Bundles in use: nothing is unpickled before the checks, what fails is compiled instead, and tokens stay the same."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from checkpoints.folder import read_config
from jaxinfer import LLM, SamplingParams
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.memory_plan import abstract_model
from jaxinfer.runtime import bundle, bundle_facts
from jaxinfer.runtime import bundle as bundles
from jaxinfer.runtime.bundle import (
    BundleSource,
    bundle_or_compiler,
    compile_bundle,
    fresh_compilations,
    open_bundle,
    serialized,
)
from jaxinfer.runtime.bundle_facts import OTHER_SETTINGS, SHAPING_SETTINGS, cpu_facts, expected_sizes, program_facts
from jaxinfer.runtime.bundle_files import MANIFEST_FILE, BundleFolder, BundleRefused, write_bundle
from jaxinfer.sharding import make_mesh
from pallas_kernels.native_cpu.library import KernelsUnavailable
from tests.golden_recipe import load_case, write_checkpoint
from tests.jaxinfer.harness import SIZES

CASE = load_case("llama")
STORED: dict[str, Any] = {"kv_cache_dtype": None, "matrices": {}}
RUNTIME = RuntimeConfig(**SIZES, cpu_kernels="xla")
X86 = """processor : 0
vendor_id : GenuineIntel
cpu family : 6
model : 143
model name : A CPU
flags : fpu sse avx2 avx512_bf16 amx_tile ibpb tsc_known_freq arat

processor : 1
flags : none
"""
ARM = "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd40\nFeatures : fp asimd sve i8mm\n"

_touched: list[str] = []


def _touch(name: str) -> str:
    _touched.append(name)
    return name


class Canary:
    """Says when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return _touch, ("unpickled",)


@pytest.fixture(autouse=True)
def _untouched() -> None:
    _touched.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(CASE, tmp_path_factory.mktemp("model"))


def facts(folder: Path, runtime: RuntimeConfig = RUNTIME) -> dict[str, Any]:
    config, mesh = read_config(folder)[0], make_mesh()
    sizes, dtype = expected_sizes(config, runtime, mesh)
    return program_facts(config, STORED, runtime, mesh, sizes, dtype)


def write(path: Path, described: dict[str, Any], data: bytes, *, pool_bytes: int = 0) -> Path:
    write_bundle(path, described, [("step", data)], weight_bytes=0, pool_bytes=pool_bytes, overwrite=True)
    return path


# -- facts ------------------------------------------------------------------------------------------------------------


def test_every_setting_shapes_programs_or_does_not(model: Path) -> None:
    fields = {field.name for field in dataclasses.fields(RuntimeConfig)}
    assert fields == SHAPING_SETTINGS | OTHER_SETTINGS
    assert not SHAPING_SETTINGS & OTHER_SETTINGS
    assert facts(model)["settings"].keys() == SHAPING_SETTINGS


def test_kernels_that_are_left_open_are_the_bundles(model: Path, tmp_path: Path, monkeypatch) -> None:
    left_open = dataclasses.replace(RUNTIME, cpu_kernels="auto")
    config = read_config(model)[0]
    asked: list[str] = []
    monkeypatch.setattr(bundle, "load", asked.append)
    for kernels in ("xla", "avx2"):
        described = facts(model, dataclasses.replace(RUNTIME, cpu_kernels=kernels))
        path = write(tmp_path / kernels, described, b"")
        opened, source = bundle.open_bundle(path, config, STORED, left_open, make_mesh())
        source.close()
        assert opened.cpu_kernels == kernels
    assert asked == ["avx2"]
    with pytest.raises(BundleRefused, match=r"settings\.cpu_kernels is 'xla' here; the bundle was made for 'avx2'"):
        bundle.open_bundle(tmp_path / "avx2", config, STORED, RUNTIME, make_mesh())

    def unavailable(name: str) -> None:
        raise KernelsUnavailable("there is no C++ compiler")

    monkeypatch.setattr(bundle, "load", unavailable)
    with pytest.raises(BundleRefused, match=r"CPU kernels that cannot be had here: there is no C\+\+ compiler"):
        bundle.open_bundle(tmp_path / "avx2", config, STORED, left_open, make_mesh())
    described["settings"]["cpu_kernels"] = "neon"
    with pytest.raises(BundleRefused, match=r"settings\.cpu_kernels is 'neon'; it must be one of xla, avx512_bf16"):
        bundle.open_bundle(write(tmp_path / "neon", described, b""), config, STORED, left_open, make_mesh())


def test_facts_are_json(model: Path) -> None:
    found = facts(model)
    assert json.loads(json.dumps(found)) == found


def test_what_a_cpu_can_do_is_read_without_the_kernels_words(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text(X86)
    (tmp_path / "arm").write_text(ARM)
    found = cpu_facts(tmp_path / "x86")
    assert found["features"] == ["amx_tile", "avx2", "avx512_bf16", "sse"]
    assert (found["vendor_id"], found["model"]) == ("GenuineIntel", "143")
    assert found["cores"] >= 1
    assert cpu_facts(tmp_path / "arm")["features"] == ["asimd", "fp", "i8mm", "sve"]
    (tmp_path / "none").write_text("processor : 0\n")
    for name in ("none", "missing"):
        with pytest.raises(ConfigError, match=r"cpu|CPU"):
            cpu_facts(tmp_path / name)


def test_flags_that_only_say_where_to_dump_do_not_count(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x --xla_cpu_max_isa=AVX2 --xla_b=1")
    assert facts(model)["flags"]["XLA_FLAGS"] == ["--xla_b=1", "--xla_cpu_max_isa=AVX2"]


def test_sources_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "step.py").write_text("one")
    monkeypatch.setattr(bundle_facts.pallas_kernels, "__file__", str(package / "__init__.py"))
    before = bundle_facts.sources_digest()
    assert bundle_facts.sources_digest() == before
    (package / "step.py").write_text("two")
    assert bundle_facts.sources_digest() != before


# -- opening ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "jaxlib": (lambda f: f["packages"].update(jaxlib="0.0.1"), r"packages\.jaxlib is '.*' here; .* for '0\.0\.1'"),
    "ours": (lambda f: f.update(jaxinfer="0"), "jaxinfer is"),
    "sources": (lambda f: f.update(sources="0"), "sources is"),
    "device": (lambda f: f["device"].update(kind="TPU v5 lite"), r"device\.kind is 'cpu' here"),
    "cpu": (lambda f: f["cpu"]["features"].append("avx1024"), r"cpu\.features differ .* avx1024 only there"),
    "cores": (lambda f: f["cpu"].update(cores=999), r"cpu\.cores is \d+ here; the bundle was made for 999"),
    "ptx": (lambda f: f.update(ptx=94), "ptx is None here; the bundle was made for 94"),
    "mesh": (lambda f: f["mesh"]["axes"].update(tensor=2), r"mesh\.axes\.tensor is 1 here"),
    "flags": (lambda f: f["flags"]["XLA_FLAGS"].append("--xla_x"), r"flags\.XLA_FLAGS differ .* --xla_x only there"),
    "model": (lambda f: f.update(model="0"), "model is"),
    "stored": (lambda f: f.update(stored="0"), "stored is"),
    "rows": (lambda f: f["settings"].update(max_num_seqs=5), r"settings\.max_num_seqs is 4 here"),
    "pages": (lambda f: f["settings"].update(num_pages=63), r"settings\.num_pages is 64 here"),
    "nothing": (lambda f: f.clear(), "is"),
}


@pytest.mark.parametrize("name", WRONG)
def test_nothing_is_unpickled_where_a_fact_is_another(name: str, model: Path, tmp_path: Path) -> None:
    how, message = WRONG[name]
    described = facts(model)
    how(described)
    path = write(tmp_path / "bundle", described, pickle.dumps(Canary()))
    with pytest.raises(BundleRefused, match=message):
        open_bundle(path, read_config(model)[0], STORED, RUNTIME, make_mesh())
    assert not _touched


def test_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "bundle", facts(model), pickle.dumps(Canary()))
    other = dataclasses.replace(read_config(model)[0], norm_eps=0.5)
    with pytest.raises(BundleRefused, match="model is"):
        open_bundle(path, other, STORED, RUNTIME, make_mesh())
    assert not _touched


def test_what_others_may_write_to_is_not_unpickled(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "bundle", facts(model), pickle.dumps(Canary()))
    (path / "000.executable").chmod(0o666)
    _, source = open_bundle(path, read_config(model)[0], STORED, RUNTIME, make_mesh())
    assert source.get("step", lowered)(jnp.float32(1)) == 2
    assert "may be written by everybody" in source.failures["step"]
    (path / "000.executable").chmod(0o644)
    path.chmod(0o777)
    with pytest.raises(BundleRefused, match="may be written by everybody"):
        open_bundle(path, read_config(model)[0], STORED, RUNTIME, make_mesh())
    assert not _touched


def test_what_fits_is_unpickled(model: Path, tmp_path: Path) -> None:
    """So that the tests above can fail; and what it holds is no executable, which is told."""
    path = write(tmp_path / "bundle", facts(model), pickle.dumps(Canary()))
    _, source = open_bundle(path, read_config(model)[0], STORED, RUNTIME, make_mesh())
    assert source.get("step", lowered)(jnp.float32(1)) == 2
    assert _touched == ["unpickled"]
    assert source.failures["step"].startswith("it cannot be loaded: ValueError: ")


def test_a_pool_that_is_not_sized_by_hand_is_the_bundles(model: Path, tmp_path: Path) -> None:
    config, open_ended = read_config(model)[0], dataclasses.replace(RUNTIME, num_pages=None)
    path = write(tmp_path / "bundle", facts(model), b"")
    opened, _ = open_bundle(path, config, STORED, open_ended, make_mesh())
    assert opened == RUNTIME
    described = facts(model)
    for pages, message in ((1, "its num_pages cannot be: "), ("many", "facts.settings.num_pages is 'many'")):
        described["settings"]["num_pages"] = pages
        with pytest.raises(BundleRefused, match=message):
            open_bundle(write(path, described, b""), config, STORED, open_ended, make_mesh())
    with pytest.raises(BundleRefused, match=r"weights and the bundle's KV pool take .* GiB; .* are free"):
        open_bundle(write(path, facts(model), b"", pool_bytes=1 << 47), config, STORED, open_ended, make_mesh())


def test_a_refusal_is_a_warning_with_its_reason(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "bundle", facts(model) | {"jaxinfer": "0"}, pickle.dumps(Canary()))
    runtime = dataclasses.replace(RUNTIME, bundle=path)
    with (
        caplog.at_level(logging.WARNING),
        bundle_or_compiler(read_config(model)[0], STORED, runtime, make_mesh()) as programs,
    ):
        assert programs.source.get("step", lowered)(jnp.float32(1)) == 2
    assert "the bundle was made for '0'" in caplog.text
    assert "is not used: jaxinfer is" in programs.notes()[0]
    assert not _touched
    absent = dataclasses.replace(RUNTIME, bundle=tmp_path / "none")
    with (
        pytest.raises(ConfigError, match="bundle is "),
        bundle_or_compiler(read_config(model)[0], STORED, absent, make_mesh()),
    ):
        pass


# -- one executable ---------------------------------------------------------------------------------------------------


def lowered(add: float = 1) -> Any:
    return jax.jit(lambda x: x + add).lower(jax.ShapeDtypeStruct((), jnp.float32))


@pytest.fixture(scope="module")
def made() -> bytes:
    with fresh_compilations():
        return serialized(lowered)


def never() -> Any:
    raise AssertionError("traced")


def opened(path: Path, data: bytes) -> BundleSource:
    return BundleSource(BundleFolder(write(path, {}, data)), make_mesh())


def test_an_executable_is_loaded_without_tracing(made: bytes, tmp_path: Path) -> None:
    source = opened(tmp_path / "bundle", made)
    assert source.get("step", never)(jnp.float32(1)) == 2
    assert not source.failures
    assert source.note().endswith("1 executables loaded")


def test_one_that_is_not_there_or_not_whole_is_compiled(made: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "bundle", {}, made)
    (path / "000.executable").write_bytes(made[:-1] + b"?")
    source = BundleSource(BundleFolder(path), make_mesh())
    assert source.get("step", lambda: lowered(2))(jnp.float32(1)) == 3
    assert source.get("another", lambda: lowered(3))(jnp.float32(1)) == 4
    assert "sha256" in source.failures["step"]
    assert source.failures["another"] == "the bundle does not hold it"
    assert "0 executables loaded, 2 compiled: step (" in source.note()


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(1), pickle.dumps((b"", 1, 2))])
def test_one_that_cannot_be_loaded_is_compiled(data: bytes, tmp_path: Path) -> None:
    source = opened(tmp_path / "bundle", data)
    assert source.get("step", lowered)(jnp.float32(1)) == 2
    assert source.failures["step"].startswith("it cannot be loaded: ")


def test_one_that_fails_when_it_runs_is_compiled_once(made: bytes, tmp_path: Path) -> None:
    source, error = opened(tmp_path / "bundle", made), RuntimeError("NOT_FOUND: fusion")
    source.get("step", never)
    assert source.replace("step", lambda: lowered(5), error)(jnp.float32(1)) == 6
    assert source.failures["step"] == "it cannot be run: RuntimeError: NOT_FOUND: fusion"
    with pytest.raises(RuntimeError, match="NOT_FOUND"):  # what was compiled here is no better a second time
        source.replace("step", lowered, error)


def test_what_was_compiled_for_a_bundle_did_not_come_out_of_the_cache(tmp_path: Path) -> None:
    """Such an executable lacks parts once it is serialized. JAX has decided long ago that there is a cache here."""
    before = jax.config.jax_enable_compilation_cache
    lowered().compile()
    with fresh_compilations():
        data = serialized(lowered)
    assert jax.config.jax_enable_compilation_cache == before
    assert opened(tmp_path / "bundle", data).get("step", never)(jnp.float32(1)) == 2


# -- a whole engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, mesh, path = read_config(model)[0], make_mesh(), tmp_path_factory.mktemp("bundles") / "whole"
    compile_bundle(path, abstract_model("tiny", config, "float32", mesh), STORED, RUNTIME, mesh)
    return path


def tokens(model: Path, bundle: Path | None) -> tuple[list[list[int]], tuple[str, ...]]:
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(model, bundle=bundle, **SIZES) as llm:
        answers = llm.generate([list(prompt) for prompt in CASE.prompts], greedy)
        return [answer.outputs[0].token_ids for answer in answers], llm.info.notes


@pytest.mark.longer
def test_tokens_are_the_same_and_nothing_is_traced(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = tokens(model, None)
    assert expected == [list(greedy[:12]) for greedy in CASE.greedy]
    count = len(json.loads((whole / MANIFEST_FILE).read_text())["executables"])
    with monkeypatch.context() as patch:
        patch.setattr(bundles.Compiler, "get", lambda *_: never())
        found, notes = tokens(model, whole)
    assert found == expected
    assert notes[-1] == f"bundle {whole}: {count} executables loaded"


@pytest.mark.longer
def test_one_bad_executable_does_not_spoil_the_others(model: Path, whole: Path, tmp_path: Path) -> None:
    """One file is torn, one is gone, and one is the whole and sound executable of another program."""
    with BundleFolder(whole) as folder:
        entries = folder.manifest.executables
        data = {entry.name: folder.read(entry) for entry in entries}
    data["admit"] = next(value for name, value in data.items() if name.startswith("draw"))
    path = tmp_path / "bundle"
    described = json.loads((whole / MANIFEST_FILE).read_text())["facts"]
    write_bundle(path, described, data.items(), weight_bytes=0, pool_bytes=0)
    names = list(data)
    torn, gone = (next(name for name in names if name.startswith(kind)) for kind in ("step", "draw"))
    (path / f"{names.index(torn):03}.executable").write_bytes(b"")
    (path / f"{names.index(gone):03}.executable").unlink()
    found, notes = tokens(model, path)
    assert found == [list(greedy[:12]) for greedy in CASE.greedy]
    assert f"{len(names) - 3} executables loaded, 3 compiled: " in notes[-1]
    assert "admit (it cannot be run: " in notes[-1]


@pytest.mark.longer
def test_a_bundle_for_other_settings_is_not_used(model: Path, whole: Path) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(model, bundle=whole, **SIZES | {"max_num_seqs": 3}) as llm:
        answer = llm.generate([list(CASE.prompts[0])], greedy)[0]
        assert answer.outputs[0].token_ids == list(CASE.greedy[0][:12])
        assert "is not used: settings.max_num_seqs is 3 here; the bundle was made for 4" in llm.info.notes[-1]


@pytest.mark.longer
def test_programs_of_a_bundle_count_what_experts_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = load_case("qwen3_moe")
    folder, path, mesh = write_checkpoint(case, tmp_path / "model"), tmp_path / "bundle", make_mesh()
    config = read_config(folder)[0]
    compile_bundle(path, abstract_model("tiny", config, "float32", mesh), STORED, RUNTIME, mesh)
    monkeypatch.setattr(bundles.Compiler, "get", lambda *_: never())
    with LLM(folder, bundle=path, **SIZES) as llm:
        answer = llm.generate(list(case.prompts[0]), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
        assert answer[0].outputs[0].token_ids == list(case.greedy[0][:12])
        each = case.config["num_experts_per_tok"] * len(llm.info.expert_layers)
        assert llm.expert_load().total == each * (len(case.prompts[0]) + 12 - 1)
