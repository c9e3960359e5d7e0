"""What a GPU is given to do by compiled programs, in XLA's own words.

XLA writes the sequence of a program's thunks (kernels, copies, calls, branches, loops) where `--xla_dump_to` asks for
it. Those inside a command buffer are launched together, as one CUDA graph; every other one is launched by the host,
and a branch or a loop among these makes the host wait for what the device decides.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

FLAGS = "--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_({names})"
_FILE = re.compile(r"module_\d+\.jit_(\w+)\.thunk_sequence_after_thunk_passes\.txt")
_THUNK = re.compile(r"(?P<indent> *)\d+: (?P<kind>k\w+) *\[[^\]]*\] *(?P<name>\S*)")


@dataclasses.dataclass(frozen=True)
class Thunk:
    """One of a program's thunks. depth: 0 for what the host launches."""

    kind: str
    name: str
    depth: int


def flags(folder: Path, names: str) -> str:
    """What XLA_FLAGS must hold for `read` to find the programs whose functions match `names`, e.g. "step|draw"."""
    return FLAGS.format(folder=folder, names=names)


def read(folder: Path) -> dict[str, list[list[Thunk]]]:
    """The thunks of all programs that were compiled, by the name of their function."""
    found: dict[str, list[list[Thunk]]] = {}
    for path in sorted(folder.iterdir()):
        if match := _FILE.fullmatch(path.name):
            found.setdefault(match[1], []).append(thunks(path.read_text()))
    return found


def thunks(text: str) -> list[Thunk]:
    """Those of a thunk sequence, in their order."""
    matches = [match for line in text.splitlines() if (match := _THUNK.match(line))]
    return [Thunk(match["kind"], match["name"], len(match["indent"]) // 2) for match in matches]
