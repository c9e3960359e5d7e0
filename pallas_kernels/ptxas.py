"""The assembler of NVIDIA's PTX that XLA would run for a Triton kernel, and which PTX it takes.

jax-triton writes a kernel as PTX into a program, and XLA assembles it when the program first runs: too late to say what
is wrong. What is found here is what XLA finds: the folders of PATH first, then those where CUDA is installed, then the
wheels that JAX's extras bring (`FindPtxAsExecutable` and `CandidateCudaRoots` of XLA, as jaxlib's `triton_kernels.cc`
calls them).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

_OLDEST = (11, 8, 0)  # XLA looks further where one is older,
_BROKEN = ((12, 3, 103),)  # or one of these
_PLUGINS = {"jax_cuda13_plugin": "cu13", "jax_cuda12_plugin": "cuda_nvcc"}  # and where a wheel has the assembler
# The first release of CUDA whose assembler knows a compute capability (PTX ISA, "Release History").
_FIRST_RELEASES = {
    (8, 0): (11, 0), (8, 6): (11, 1), (8, 7): (11, 4), (8, 9): (11, 8), (9, 0): (12, 0), (10, 0): (12, 8),
    (10, 3): (12, 9), (11, 0): (13, 0), (12, 0): (12, 8), (12, 1): (12, 9),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Assembler:
    """A program `ptxas`.

    Attributes:
        release: of the CUDA toolkit that it belongs to.
    """

    path: Path
    release: tuple[int, int]

    @property
    def ptx(self) -> int:
        """The newest PTX that it takes, as 10 * major + minor (PTX ISA, "Release History")."""
        major, minor = self.release
        if major >= 13:
            return 90 + 10 * (major - 13) + minor
        if major == 12:
            return 80 + minor - (minor >= 6)  # 12.5 and 12.6 have the same
        return 70 + minor

    def refusal(self, capability: tuple[int, int]) -> str | None:
        """Why it assembles nothing for a compute capability, if so."""
        first = _FIRST_RELEASES.get(capability)
        if first is None or self.release >= first:
            return None
        return (
            f"{self.path} is of CUDA {_dotted(self.release)}, and compute capability {_dotted(capability)} needs "
            f"{_dotted(first)}: install a newer CUDA toolkit, or take this one off PATH and install jaxinfer[cuda13]"
        )


def find() -> Assembler | None:
    """The assembler that XLA would run in this process; None: there is none."""
    for folder in _folders():
        found = _assembler(folder / "ptxas")
        if found is not None:
            return found
    return None


def _folders() -> Iterator[Path]:
    """Where XLA looks, in its order."""
    yield from (Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep))
    yield from (Path("/usr/local/cuda/bin"), Path("/opt/cuda/bin"))
    for plugin, wheel in _PLUGINS.items():
        found = importlib.util.find_spec(plugin)
        if found is not None and found.origin is not None:
            yield Path(found.origin).parents[1] / "nvidia" / wheel / "bin"


@functools.cache
def _assembler(path: Path) -> Assembler | None:
    """What a file says of itself, if it is an assembler that XLA would take."""
    if not path.is_file():
        return None
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # XLA goes on to the next one, too
    version = re.search(r"\bV(\d+)\.(\d+)\.(\d+)\b", told)
    if version is None:
        return None
    major, minor, patch = map(int, version.groups())
    if (major, minor, patch) < _OLDEST or (major, minor, patch) in _BROKEN:
        return None
    return Assembler(path, (major, minor))


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
