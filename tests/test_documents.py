"""Names that documents use are names that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from serving.commands.parsing import ALIASES, spelled
from tests.test_cli import LEAVES, known_options

ROOT = Path(__file__).resolve().parents[1]

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "README.md"]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
OTHERS = {  # options of other programs, which our documents show
    "docker": {"--gpus", "--rm", "--name"},
    "pip": {"--no-deps", "--wheel-dir"},
    "gcloud": {"--accelerator-type", "--project", "--version", "--zone"},
    "kubectl": {"--dry-run", "--previous"},
    "lm-eval": {"--model", "--model_args", "--tasks"},
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_that_documents_name_exist(document):
    own = known_options(*LEAVES.values()) | ALIASES.keys()
    scripts = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("scripts", "deploy", "tests/conftest.py")
        for path in ([ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).rglob("*")))
        if path.suffix in (".py", ".sh")
    )
    for line in document.read_text(encoding="utf-8").splitlines():
        for name in re.findall(r"(?<![\w-])--[a-z][\w-]+", line):
            known = name in own or any(name in names for names in OTHERS.values())
            assert known or f'"{name}"' in scripts, f"{document.name}: no program has {name}: {line}"
        for command, rest in re.findall(r"jaxinfer (keys new|keys list|bench [a-z]+|[a-z]+)((?: [^`|]*)?)", line):
            if command in LEAVES:
                names = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", rest.split(" jaxinfer ")[0]))
                assert names <= known_options(LEAVES[command]), f"{document.name}: {command} lacks one of these: {line}"


def test_defaults_of_the_table_of_settings_are_the_programs():
    """docs/operations.md says what holds without an option of `serve`."""
    found = {}
    for line in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`(--[a-z-]+)", cells[0]) if line.startswith("| `--") else []
        found |= dict.fromkeys(names, cells[1].strip("`") if len(cells) > 1 else "")
    assert len(found) > 15
    actions = {name: action for action in LEAVES["serve"]._actions for name in action.option_strings}
    for name, said in found.items():
        assert said == spelled(actions[name].default if actions[name].default != "" else None), name


ROOMS = ("jaxinfer", "serving", "checkpoints", "pallas_kernels", "protos", "scripts", "tests", "deploy", "docs")
WRITTEN = (".py", ".md", ".sh", ".toml", ".yml", ".yaml", ".proto", ".js", ".html", ".css")
NAMED = re.compile(
    rf"""(?<![\w./$"'{{}}-])((?:{"|".join(ROOMS)})/[\w./-]*\w\.(?:py|md|sh|toml|proto|js|html|css|json))\b"""
)
PLACEHOLDERS = {"tests/goldens/NAME.json"}


def test_files_that_comments_and_documents_name_exist():
    """A file that was moved is still named by whoever wrote of it: paths from the root or from the folder of the file
    that names them, in text and comments."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in WRITTEN]
    files += [path for path in (*ROOT.glob("*"), ROOT / ".ci" / "run") if path.is_file()]
    assert len(files) > 500
    lost = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            lost += [
                f"{file.relative_to(ROOT)}:{number}: {path}"
                for path in NAMED.findall(line)
                if not (ROOT / path).exists() and not (file.parent / path).exists() and path not in PLACEHOLDERS
            ]
    assert not lost, "\n".join(sorted(lost))


def test_package_data_is_there():
    """A pattern that matches nothing is of files that were moved or never came."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for package, patterns in settings["package-data"].items():
        for pattern in patterns:
            assert any((ROOT / package).glob(pattern)), f"{package}: no file is {pattern}"
