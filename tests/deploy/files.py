"""What the tests of deploy/ share: its files, and the programs that judge them."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.commands.serve import make_parser
from serving.http.openapi import document

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CLOSE_SECONDS = 2  # serving.server's, for statuses to reach their clients


def program(name: str, package: str) -> str:
    """Its path. Skips the test where it is not installed."""
    for folder in (None, "/usr/sbin:/sbin"):
        found = shutil.which(name, path=folder)
        if found is not None:
            return found
    pytest.skip(f"{name} is not installed (Debian: apt install {package})")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def serve_arguments(words: list[str]) -> Any:
    """What `jaxinfer serve` makes of its arguments; it refuses those that it does not know."""
    return make_parser("jaxinfer").parse_args(words)


def paths_of_the_server() -> set[str]:
    return set(document()["paths"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
