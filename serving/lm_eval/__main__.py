"""The harness's own command line, with `--model jaxinfer` known to it.

lm-eval up to 0.4.13 knows only the models in its own source; later versions find this one by the entry point in
pyproject.toml, so that `lm_eval run --model jaxinfer` does the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence

from checkpoints.files import CheckpointError
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.model_path import hub_cache_from, resolve_model
from serving.commands.early import check_model
from serving.commands.parsing import BAD_INPUT, fail

_PROGRAM = "python -m serving.lm_eval"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs lm-eval on sys.argv; 2 when it is not installed, or when the model cannot be had: the harness takes a while
    to start, and would say so after that."""
    if importlib.util.find_spec("lm_eval") is None:
        return fail(_PROGRAM, "lm-eval is not installed; pip install 'jaxinfer[lm-eval]'", BAD_INPUT)
    try:
        _check_model(sys.argv[1:] if argv is None else argv)
    except (CheckpointError, ConfigError) as error:
        return fail(_PROGRAM, str(error), BAD_INPUT)
    from lm_eval.__main__ import cli_evaluate

    import serving.lm_eval.adapter  # noqa: F401 (registers the model)

    cli_evaluate()
    return 0


def _check_model(argv: Sequence[str]) -> None:
    """Raises ConfigError or CheckpointError for a model of ours whose files are not there."""
    if "jaxinfer" not in _values(argv, ("--model", "-M")):
        return
    given: dict[str, object] = {}
    for text in _values(argv, ("--model_args", "-a")):
        given |= _pairs(text)
    name = given.get("pretrained", given.get("model"))
    check_model(resolve_model(None if name is None else str(name), hub_cache_from(os.environ)), RuntimeConfig())


def _values(argv: Sequence[str], names: tuple[str, ...]) -> list[str]:
    """What follows an option of one of these names, up to the next option."""
    found: list[str] = []
    taking = False
    for text in argv:
        name, equals, value = text.partition("=")
        if text.startswith("-"):
            taking = name in names
            found += [value] if taking and equals else []
        elif taking:
            found.append(text)
    return found


def _pairs(text: str) -> dict[str, object]:
    """NAME=VALUE,NAME=VALUE or a JSON object, as the harness takes them."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            return {}  # the harness's to refuse
        return found if isinstance(found, dict) else {}
    parts = (part.partition("=") for part in text.split(","))
    return {name.strip(): value for name, equals, value in parts if equals}


if __name__ == "__main__":
    sys.exit(main())
