"""Where Triton kernels cannot run: found before anything is compiled, and said with what to install."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from pallas_kernels import ptxas, triton_support
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.ptxas import Assembler

HOPPER = DeviceTarget("gpu", "NVIDIA H200", (9, 0))


def lay(folder: Path, version: str, code: int = 0) -> Path:
    """A `ptxas` that says it is of this version."""
    folder.mkdir()
    program = folder / "ptxas"
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release 1.1, V{version}'\nexit {code}\n")
    program.chmod(0o700)
    return folder


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of PATH, to be filled; none of this machine's own assemblers is found."""
    folders: list[Path] = []
    monkeypatch.setattr(ptxas, "_folders", lambda: iter(folders))
    return folders


def test_the_first_assembler_that_xla_would_take_is_found(tmp_path: Path, path: list[Path]) -> None:
    assert ptxas.find() is None
    path += [
        tmp_path / "nothing",
        lay(tmp_path / "old", "11.7.99"),
        lay(tmp_path / "broken", "12.3.103"),
        lay(tmp_path / "failing", "13.0.88", code=1),
        lay(tmp_path / "silent", "?"),
        lay(tmp_path / "first", "12.8.93"),
        lay(tmp_path / "second", "13.4.59"),
    ]
    assert ptxas.find() == Assembler(tmp_path / "first" / "ptxas", (12, 8))


def test_path_comes_before_cuda_and_its_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/one:/two")
    plugin = types.SimpleNamespace(origin="/packages/jax_cuda13_plugin/__init__.py")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: plugin if "13" in name else None)
    folders = ["/one", "/two", "/usr/local/cuda/bin", "/opt/cuda/bin", "/packages/nvidia/cu13/bin"]
    assert list(map(str, ptxas._folders())) == folders


# As the assemblers of these releases say themselves, when they are given a later one.
@pytest.mark.parametrize(
    ("release", "ptx"), [((11, 8), 78), ((12, 0), 80), ((12, 5), 85), ((12, 6), 85), ((12, 9), 88), ((13, 0), 90),
                         ((13, 4), 94)]
)  # fmt: skip
def test_the_ptx_that_an_assembler_takes(release: tuple[int, int], ptx: int) -> None:
    assert Assembler(Path("ptxas"), release).ptx == ptx


@pytest.mark.usefixtures("triton_packages")
class TestRefusal:
    def test_what_is_missing_is_named_with_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert triton_support.refusal(HOPPER) is None
        monkeypatch.setattr(ptxas, "find", lambda: None)
        reason = "there is no ptxas, which assembles its kernels, on PATH or where CUDA is installed"
        assert triton_support.refusal(HOPPER) == f"{reason}: pip install jaxinfer[cuda13] (or cuda12)"
        monkeypatch.setattr(triton_support, "_version", lambda: (0, 3, 0))
        reason = "jax-triton is 0.3.0; it must be at least 0.3.1"
        assert triton_support.refusal(HOPPER) == f"{reason}: pip install jaxinfer[cuda13] (or cuda12)"
        for package, name in (("triton", "triton"), ("jax_triton", "jax-triton")):
            monkeypatch.setattr(triton_support, "_is_installed", lambda asked, package=package: asked != package)
            reason = f"{name} is not installed: pip install jaxinfer[cuda13] (or cuda12)"
            assert triton_support.refusal(HOPPER) == reason

    @pytest.mark.parametrize(
        ("capability", "release", "first"),
        [((8, 9), (11, 7), "11.8"), ((9, 0), (11, 8), "12.0"), ((10, 0), (12, 4), "12.8"), ((10, 3), (12, 8), "12.9"),
         ((12, 0), (12, 6), "12.8"), ((12, 1), (12, 8), "12.9")],
    )  # fmt: skip
    def test_an_assembler_that_is_older_than_the_card(
        self, capability: tuple[int, int], release: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = DeviceTarget("gpu", "NVIDIA", capability)
        monkeypatch.setattr(ptxas, "find", lambda: Assembler(Path("/cuda/bin/ptxas"), release))
        reason = triton_support.refusal(target)
        assert reason is not None
        needs = f"compute capability {capability[0]}.{capability[1]} needs {first}: install a newer CUDA toolkit"
        assert reason.startswith(f"/cuda/bin/ptxas is of CUDA {release[0]}.{release[1]}, and {needs}")
        major, minor = map(int, first.split("."))
        monkeypatch.setattr(ptxas, "find", lambda: Assembler(Path("/cuda/bin/ptxas"), (major, minor)))
        assert triton_support.refusal(target) is None
