"""Where the kernels come from, and when they are refused."""

from __future__ import annotations

import shutil
import sys

import pytest

from pallas_kernels.native_cpu import instructions, library
from pallas_kernels.native_cpu.library import KernelsUnavailable
from tests.pallas_kernels.native_cpu.loaded import target_for

AVX2 = instructions.BY_NAME["avx2"]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty folder for compiled kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "jaxinfer" / "kernels"


@pytest.fixture
def fake_compiler(monkeypatch, tmp_path):
    """Writes its arguments where the library should go, and counts its runs."""
    script = tmp_path / "fake-c++"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "if '--version' in sys.argv: print('fake 1'); sys.exit()\n"
        f"with open({str(tmp_path / 'runs')!r}, 'a') as f: f.write('run\\n')\n"
        "pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_text(' '.join(sys.argv))\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return tmp_path / "runs"


def test_kernels_are_compiled_once_for_what_they_depend_on(cache, fake_compiler, monkeypatch):
    first = library.compiled(AVX2)
    assert first == library.compiled(AVX2)
    assert first.parent == cache
    assert fake_compiler.read_text() == "run\n"
    assert {"-mavx2", "-mfma"} <= set(first.read_text().split())
    assert library.compiled(instructions.BY_NAME["avx512"]) != first
    monkeypatch.setattr(library.jaxlib, "__version__", "0.0.0")
    assert library.compiled(AVX2) != first
    assert [path.suffix for path in cache.iterdir()] == [".so"] * 3  # nothing unfinished is left


def test_a_library_that_others_can_write_is_not_loaded(cache, fake_compiler):
    found = library.compiled(AVX2)
    found.chmod(0o666)
    with pytest.raises(KernelsUnavailable, match="can be written by others"):
        library.compiled(AVX2)
    found.chmod(0o755)
    library.compiled(AVX2)
    cache.chmod(0o777)
    with pytest.raises(KernelsUnavailable, match="can be written by others"):
        library.compiled(AVX2)


def test_without_a_compiler_the_reason_is_said(cache, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(KernelsUnavailable, match=r"no C\+\+ compiler"):
        library.compiled(AVX2)


def test_a_compiler_that_fails_is_quoted(cache, monkeypatch, tmp_path):
    script = tmp_path / "broken-c++"
    script.write_text("#!/bin/sh\ncase $1 in --version) exit 0;; esac\necho 'no such instruction' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(KernelsUnavailable, match="failed: no such instruction"):
        library.compiled(AVX2)
    assert not list(cache.iterdir())


def test_an_instruction_set_that_is_unknown_or_not_here_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="instruction set is 'sse9'; it must be auto or one of avx512_bf16,"):
        library.load("sse9")
    monkeypatch.setattr(library, "available", lambda: (AVX2,))
    with pytest.raises(KernelsUnavailable, match="does not have avx512; of those that the kernels know it has avx2"):
        library.load.__wrapped__("avx512")
    monkeypatch.setattr(library, "available", lambda: ())
    with pytest.raises(KernelsUnavailable, match="none of the instruction sets"):
        library.load.__wrapped__("auto")


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ("avx2 fma", ["avx2"]),
        ("avx2 fma avx_vnni", ["avx2_vnni", "avx2"]),
        ("avx2 fma avx512f avx512bw avx512dq avx512vl", ["avx512", "avx2"]),
        ("avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni", ["avx512_vnni", "avx512", "avx2"]),
        ("sse2", []),
    ],
)
def test_the_best_instruction_set_comes_first(features, names, monkeypatch):
    monkeypatch.setattr(instructions, "cpu_features", lambda: frozenset(features.split()))
    assert [one.name for one in instructions.available()] == names


def test_threads_follow_affinity_and_the_control_group(monkeypatch, tmp_path):
    monkeypatch.setattr(library.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for text, cores in (("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(library, "_CPU_MAX", tmp_path / "cpu.max")
        assert library.usable_cores() == cores
    monkeypatch.setattr(library, "_CPU_MAX", tmp_path / "not-there")
    assert library.usable_cores() == 8


def test_what_was_loaded_is_known_by_name():
    target = target_for("avx2")
    assert library.target_name("dense_matmul", target.instructions) == "jaxinfer_dense_matmul_avx2"
    assert library.load("avx2") is library.load("avx2")
