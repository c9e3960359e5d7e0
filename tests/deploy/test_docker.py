"""The Dockerfiles, read: a container engine is not at hand. What they run is run where that can be done without one."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.deploy.files import DEPLOY, ROOT, serve_arguments
from tests.fakes import FakeOptions
from tests.serving.http.browser import running

NAMES = ("cpu", "cuda")


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, rest) in order, lines joined."""
    text = (DEPLOY / f"docker/{name}.Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def last(name: str, instruction: str) -> str:
    return [rest for found, rest in instructions(name) if found == instruction][-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_image_is_what_kubernetes_and_the_docs_say(name):
    steps = instructions(name)
    stages = [i for i, (found, _) in enumerate(steps) if found == "FROM"]
    assert len(stages) == 2
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+( AS build)?", steps[i][1]) for i in stages)
    assert last(name, "USER") == "10001:10001"
    after = [found for found, _ in steps[[found for found, _ in steps].index("USER") :]]
    assert "RUN" not in after
    assert "COPY" not in after
    assert last(name, "EXPOSE").split() == ["8000", "50051"]
    assert last(name, "STOPSIGNAL") == "SIGTERM"
    program, command, *rest = json.loads(last(name, "ENTRYPOINT"))
    assert (program, command) == ("jaxinfer", "serve")
    arguments = serve_arguments(rest)
    assert (arguments.host, arguments.port) == ("0.0.0.0", 50051)  # it is reached from outside of the container


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_is_there_and_let_in(name):
    ignored = (DEPLOY / f"docker/{name}.Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = set()
    for found, rest in instructions(name):
        if found == "COPY" and not rest.startswith("--from"):
            copied |= set(rest.split()[:-1])
    assert copied == let_in
    for each in copied:
        assert (ROOT / each).exists(), each
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= copied


@pytest.mark.longer
def test_what_is_copied_is_enough_for_the_package(tmp_path):
    """Built from those files alone, it is the package whole."""
    pytest.importorskip("setuptools", reason="setuptools is not installed, and a build must not fetch it")
    for found, rest in instructions("cpu"):
        if found == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, tmp_path / "src" / target, ignore=shutil.ignore_patterns("__pycache__")
                    )
                else:
                    (tmp_path / "src").mkdir(exist_ok=True)
                    shutil.copy(ROOT / source, tmp_path / "src")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path / "dist"), str(tmp_path / "src")], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, str(ROOT / "scripts/check_wheel_contents.py"), str(wheel)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_shell_and_the_extras_exist(name):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    defaults = dict(rest.split("=") for found, rest in instructions(name) if found == "ARG")
    for found, rest in instructions(name):
        if found == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
            for wanted in re.findall(r'"\.\[(.*?)\]"', rest):
                for extra in wanted.split(","):
                    assert defaults.get(extra.strip("${}"), extra) in extras
    assert (name == "cuda") == ("EXTRA" in defaults)
    platforms = re.search(r"JAX_PLATFORMS=(\w+)", last(name, "ENV"))
    assert platforms is not None
    assert platforms[1] == name


@pytest.mark.longer
@pytest.mark.parametrize("name", NAMES)
def test_the_health_check_tells_a_server_that_is_alive(name):
    check = last(name, "HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :])
    assert shlex.join(command).count(":8000/health") == 1
    assert command[0] == "python"

    def outcome(address: str) -> int:
        words = [sys.executable, *(word.replace("http://127.0.0.1:8000", address) for word in command[1:])]
        return subprocess.run(words, capture_output=True, timeout=20).returncode

    with running(FakeOptions()) as s:
        assert outcome(s.url) == 0
    assert outcome(s.url) != 0
    with running(FakeOptions(load_seconds=6), ready=False) as loading:
        assert outcome(loading.url) != 0
