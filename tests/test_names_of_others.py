"""Names that other libraries know by string exist there: those libraries would pass over a wrong one in silence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib

from jaxinfer.runtime.compile_counter import CompileCounter

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("jaxinfer", "checkpoints", "pallas_kernels", "serving", "scripts")
NOT_OPTIONS = {
    "jax_triton",
    "jax_cudnn",
    "jax_ragged_dot",
    "jax_xla",
}  # a package, and names of sections of the device check


def sources() -> Iterator[tuple[Path, str]]:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            yield path, path.read_text(encoding="utf-8")


def literals(pattern: str) -> dict[str, Path]:
    """Whole string literals of our sources that match: {literal: a file that has it}."""
    return {name: path for path, text in sources() for name in re.findall(rf'"({pattern})"', text)}


def test_options_of_jax_exist() -> None:
    """As options (jax_*), also those asked for with `getattr` and a default, and as environment variables (JAX_*)."""
    options = literals(r"jax_[a-z_]+") | literals(r"JAX_[A-Z_]+")
    assert {"jax_compilation_cache_dir", "jax_num_cpu_devices", "JAX_PLATFORMS"} <= options.keys()
    missing = {name: path for name, path in options.items() if not hasattr(jax.config, name.lower())}
    assert missing.keys() <= NOT_OPTIONS, missing


def test_variables_of_the_xla_client_exist() -> None:
    named = literals(r"XLA_PYTHON_[A-Z_]+")
    assert named
    source = (Path(jaxlib.__file__).parent / "xla_client.py").read_text(encoding="utf-8")
    assert not {name: path for name, path in named.items() if name not in source}


def test_compilations_are_reported_under_the_name_that_is_counted() -> None:
    counter = CompileCounter()
    try:
        jax.jit(lambda x: x * 3 + 41)(jnp.arange(7)).block_until_ready()
        assert counter.count > 0
    finally:
        counter.close()


def test_nothing_imports_messages_that_are_tied_to_one_protobuf() -> None:
    """sentencepiece's own message classes refuse to import beside an older protobuf than they were generated with."""
    importing = {path.name for path, text in sources() if re.search(r"import.*sentencepiece_model_pb2", text)}
    assert importing == {"make_text_goldens.py"}  # runs where transformers is, which needs them too
