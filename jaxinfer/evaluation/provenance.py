"""What is needed to run an evaluation again, and each item beside its response."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from jaxinfer import __version__
from jaxinfer.evaluation.run import TaskResult

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tokenizers")


def provenance(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a record: date (UTC), versions of what computes, and what was asked."""
    versions = {"jaxinfer": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "asked": dict(asked),
    }


def answer_records(results: Mapping[str, TaskResult]) -> Iterator[dict[str, Any]]:
    """One record for each item that was asked, kind by kind."""
    for name, result in results.items():
        for answer in result.answers:
            yield {
                "kind": name,
                "messages": [dict(message) for message in answer.item.messages],
                "answer": answer.item.answer,
                "response": answer.response,
                "found": answer.found,
                "right": answer.right,
                "finish_reason": answer.finish_reason,
                "depth": answer.item.depth,
            }
