"""What every section is told, and the sizes that a rehearsal shrinks. Standard library only."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    out: folder of `results.jsonl`, `log.txt` and `table.md`.
    cache: folder of compiled programs, shared by the sections.
    rehearse: tiny sizes on the CPU; nothing that it prints is a measurement.
    wheels: folder that may hold wheels of what is not installed.
    stage: which one runs; 0 where none does.
    """

    out: Path
    cache: Path
    rehearse: bool = False
    wheels: Path = ROOT / ".whl"
    stage: int = 0

    def arguments(self) -> list[str]:
        """The command line that gives a section's process the same settings."""
        paths = ["--out", str(self.out), "--cache", str(self.cache), "--wheels", str(self.wheels)]
        stage = ["--stage", str(self.stage)] if self.stage else []
        return paths + stage + (["--rehearse"] if self.rehearse else [])

    def environment(self) -> dict[str, str]:
        """Of the sections' processes."""
        python_path = [str(ROOT), str(ROOT / "scripts"), str(self.cache / "wheels"), os.environ.get("PYTHONPATH", "")]
        settings = {
            "PYTHONPATH": os.pathsep.join(path for path in python_path if path),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",  # a crash inside the compiler says where it was called
            # Sections follow each other, and the tests run in several processes: nobody takes all memory at its start.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache / "xla"),
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "xla_gpu_per_fusion_autotune_cache_dir",  # beside the programs
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache / "inductor"),
            "TRITON_CACHE_DIR": str(self.cache / "triton"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.rehearse:
            settings |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        return os.environ | settings


def default_out() -> Path:
    """`$OUT`, or ./device_check."""
    return Path(os.environ.get("OUT") or "device_check")


def kept_cache(rehearse: bool) -> Path:
    """A folder of the user's that survives, so that what one stage compiled and chose is there for the next."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "jaxinfer" / ("device_check_rehearsal" if rehearse else "device_check")


def fresh_cache() -> Path:
    """An empty folder, so that start-up times include compiling."""
    return Path(tempfile.mkdtemp(prefix="device_check_cache_"))
