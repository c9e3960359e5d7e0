"""Reads every import and fails on an arrow that the design does not have."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room -> rooms it may import. Imports run one way: pallas_kernels <- jaxinfer <- checkpoints <- serving.
ALLOWED = {
    "pallas_kernels": set(),
    "jaxinfer": {"pallas_kernels"},
    "checkpoints": {"jaxinfer", "pallas_kernels"},
    "serving": {"checkpoints", "jaxinfer", "pallas_kernels", "protos"},
    "protos": set(),
}
# Composition roots: these may reach up, by imports inside functions only.
ROOTS = {"jaxinfer/llm.py": {"checkpoints"}, "jaxinfer/cli.py": {"checkpoints", "serving", "protos"}}
# The host side: none of these files, nor anything of ours that they import, imports jax.
NO_JAX = ("jaxinfer/scheduling", "jaxinfer/text", "jaxinfer/config", "jaxinfer/messages.py", "jaxinfer/outputs.py")
# Parts of the server that run beside the engine's process and must start quickly.
NO_JAX += (
    "jaxinfer/sampling_params.py",
    "jaxinfer/model_path.py",
    "jaxinfer/models/shape.py",
    "protos",
    "jaxinfer/evaluation",
    # What a command refuses it refuses without waiting for jax.
    "jaxinfer/cli.py",
    "serving/commands",
    "serving/lm_eval/__main__.py",
)


def sources(*rooms: str) -> list[Path]:
    return [p for room in rooms for p in sorted((ROOT / room).rglob("*.py")) if "demo" not in p.parts]


@functools.cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(module, whether the import sits inside a function) for every import of a file."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [f for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", id(node) in inside


@pytest.mark.parametrize("path", sources(*ALLOWED), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    room = name.split("/")[0]
    for module, in_function in imports(path):
        other = module.split(".")[0]
        if other not in ALLOWED or other == room:
            continue
        allowed = other in ALLOWED[room] or (in_function and other in ROOTS.get(name, set()))
        assert allowed, f"{name} imports {module}"


def test_no_engine_module_imports_a_composition_root() -> None:
    roots = {name.removesuffix(".py").replace("/", ".") for name in ROOTS}
    for path in sources("jaxinfer", "pallas_kernels"):
        name = str(path.relative_to(ROOT))
        if name in ROOTS or name in ("jaxinfer/__init__.py", "jaxinfer/__main__.py"):
            continue
        assert not roots & {module for module, _ in imports(path)}, f"{name} imports a composition root"


def _reaches_jax(module: str, seen: set[str]) -> str | None:
    """The chain of our modules from `module` to an import of jax or flax, or None."""
    if module in seen:
        return None
    seen.add(module)
    base = ROOT / module.replace(".", "/")
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not path.exists():
        return None
    for name, in_function in imports(path):
        top = name.split(".")[0]
        if in_function or _type_checking_only(path, name):
            continue
        if top in ("jax", "jaxlib", "flax", "chex", "orbax"):
            return f"{module} -> {name}"
        if top in ALLOWED:
            chain = _reaches_jax(name, seen)
            if chain is not None:
                return f"{module} -> {chain}"
    return None


@functools.cache
def _type_checking_only(path: Path, module: str) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            names = {n.module for n in ast.walk(node) if isinstance(n, ast.ImportFrom)}
            if module in names:
                return True
    return False


@pytest.mark.parametrize("part", NO_JAX)
def test_host_side_never_imports_jax(part: str) -> None:
    paths = sources(part) if (ROOT / part).is_dir() else [ROOT / part]
    assert paths
    for path in paths:
        module = str(path.relative_to(ROOT)).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        assert _reaches_jax(module, set()) is None


def test_files_stay_readable() -> None:
    """A file wants to be under 400 lines; none may pass 450, and no function 80."""
    for path in sources("pallas_kernels", "jaxinfer", "checkpoints", "serving"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno
                assert length <= 80, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_engine_step_is_a_sentence() -> None:
    tree = ast.parse((ROOT / "jaxinfer/engine.py").read_text())
    (step,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "step"]
    assert step.end_lineno is not None
    assert step.end_lineno - step.lineno < 25
