"""Runs modules and scripts in processes of their own, since an error inside a compiler aborts the process.

Each is forked from one that has imported JAX and what else most of them need, and has compiled nothing: a second less
than a new Python takes.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.aot.test_paged_attention", "jax.experimental.pallas", "rich.table"])


def run_elsewhere(
    program: str, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """What `python program arguments` (a path that ends in .py) or `python -m program arguments` would give, with
    `environment` on top of this process's. Raises TimeoutError after so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _CONTEXT.Process(target=_run, args=(program, arguments, dict(environment or {}), files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{program} {arguments} takes more than {timeout} s")
        stdout, stderr = (file.read_text(errors="replace") for file in files)
    return subprocess.CompletedProcess([program, *arguments], process.exitcode, stdout, stderr)


def _run(program: str, arguments: tuple[str, ...], environment: dict[str, str], files: list[Path]) -> None:
    os.environ.update({"JAX_PLATFORMS": "cpu", **environment})
    for descriptor, file in zip((1, 2), files, strict=True):  # compilers write there, past Python
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.chdir(ROOT)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(ROOT / Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
