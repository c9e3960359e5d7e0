"""Reads every import and fails on an arrow that the design does not have, on a circle, and on what grew too long."""

from __future__ import annotations

import ast
import functools
import sys
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

# Who asks for an evaluation, beside the commands; the engine's rooms do without it.
EVALUATION = "jaxinfer.evaluation"
EVALUATORS = ("jaxinfer/evaluation", "serving/commands", "serving/evaluation", "serving/lm_eval")
CODE = ("pallas_kernels", "jaxinfer", "checkpoints", "serving", "scripts")
FILE_LINES, FUNCTION_LINES = 400, 60


def sources(*rooms: str) -> list[Path]:
    return [p for room in rooms for p in sorted((ROOT / room).rglob("*.py")) if "demo" not in p.relative_to(ROOT).parts]


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


@functools.cache
def modules() -> dict[str, Path]:
    """{name that it is imported by: file}. What is in scripts/ imports its neighbours by their own names."""
    found = {}
    for room in (*ALLOWED, "scripts"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = str(path.relative_to(ROOT)).removeprefix("scripts/")
            found[name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = path
    return found


def imported_modules(path: Path) -> set[str]:
    """Our modules that a file imports: at its top, inside functions and for type checkers, all alike.

    An import inside a function delays a dependency and one under TYPE_CHECKING hides it; neither takes it away. `from
    package import module` is an import of that module; of the package itself only where a name of its own is taken.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else str(node.module) for name in inside}
    return found & modules().keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every set of more than one node that all reach each other (Tarjan, 1972), and nodes that reach themselves."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_nodes: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        open_nodes.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
            if other in open_nodes:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == number[node]:
            members = open_nodes[open_nodes.index(node) :]
            del open_nodes[-len(members) :]
            if len(members) > 1 or node in graph[node]:
                found.append(sorted(members))

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(graph)))
    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def test_imports_have_no_circles() -> None:
    found = circles({name: imported_modules(path) for name, path in modules().items()})
    assert found == []


@pytest.mark.parametrize(
    ("arrows", "found"),
    [
        ("ab bc", []),
        ("ab ac bd cd", []),
        ("ab ba", [["a", "b"]]),
        ("ab bc ca cd de ed", [["d", "e"], ["a", "b", "c"]]),
        ("aa ab", [["a"]]),
    ],
)
def test_a_circle_is_found(arrows: str, found: list[list[str]]) -> None:
    graph: dict[str, set[str]] = {node: set() for node in "abcde"}
    for start, end in arrows.split():
        graph[start].add(end)
    assert circles(graph) == found


def test_no_engine_room_imports_evaluation() -> None:
    for path in sources("pallas_kernels", "jaxinfer", "checkpoints", "serving"):
        if not str(path.relative_to(ROOT)).startswith(EVALUATORS):
            named = {name for name in imported_modules(path) if name.startswith(EVALUATION)}
            assert not named, f"{path.relative_to(ROOT)} imports {named}"


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line, the docstring left out: what must be said of arguments makes no function long."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        text = function.body[0]
        assert text.end_lineno is not None
        lines -= text.end_lineno - text.lineno + 1
    return lines


@functools.cache
def lengths() -> dict[str, int]:
    """Of every file and every function, tests' too."""
    found = {}
    for path in sources(*CODE, "tests"):
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        found[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                function = f"{name}:{node.name}"
                found[function] = max(code_lines(node), found.get(function, 0))
    return found


def test_files_and_functions_stay_readable() -> None:
    """A file has at most 400 lines, a function 60."""
    long = {name: size for name, size in lengths().items() if size > (FUNCTION_LINES if ":" in name else FILE_LINES)}
    assert not long


def test_engine_step_is_a_sentence() -> None:
    tree = ast.parse((ROOT / "jaxinfer/engine.py").read_text())
    (step,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "step"]
    assert step.end_lineno is not None
    assert step.end_lineno - step.lineno < 25
