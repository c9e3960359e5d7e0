"""MODEL@FIELD=VALUE,...: a model and how it runs in one word, as `jaxinfer eval --compare` takes two of."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.folder import read_config
from jaxinfer.config import RuntimeConfig
from jaxinfer.model_path import resolve_model
from serving.commands.parsing import CommandError

DEMO = "demo"
EXACT_VOCABULARY = 16_384
"""Up to here whole distributions are compared. A step makes room for them at each of its tokens, and the host keeps
those of every compared position: 2,000 positions of 16,384 tokens are 260 MB."""
TOP_ALTERNATIVES = 1_000
"""Beyond it, so many tokens by name and the rest as one bucket."""

_SETTINGS = re.compile(r"@(?=[A-Za-z][\w-]*=[^@/]*$)")
_WORDS = {"true": True, "on": True, "false": False, "off": False, "none": None}


@dataclass(frozen=True)
class ModelSpec:
    """One side of a comparison, ready to run. `alternatives`: log-probabilities to ask for at each position."""

    spec: str
    name: str
    folder: Path
    runtime: RuntimeConfig
    vocab_size: int

    @property
    def alternatives(self) -> int:
        most = self.runtime.max_logprobs
        return self.vocab_size if most == -1 else most


def parse_spec(spec: str, common: Mapping[str, Any], hub_cache: Path) -> ModelSpec:
    """The model and its settings: those given for both sides, overlaid by its own.

    A folder called "demo" in the current directory does not hide the shipped model; write ./demo for it.

    Raises:
        CommandError: a setting that RuntimeConfig does not have, or is not FIELD=VALUE.
        ConfigError: no such model, or a value that cannot be.
    """
    cut = _SETTINGS.split(spec, maxsplit=1)
    name, settings = cut[0], cut[1] if len(cut) > 1 else ""
    own: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        field, value = _setting(spec, part)
        if field in own:
            raise CommandError(f"--compare {spec}: {field} is given twice")
        own[field] = value
    folder = resolve_model(None if name in ("", DEMO) else name, hub_cache)
    vocab_size = read_config(folder)[0].vocab_size
    given = {**common, **own}
    given.setdefault("max_logprobs", -1 if vocab_size <= EXACT_VOCABULARY else TOP_ALTERNATIVES)
    return ModelSpec(spec, name or DEMO, folder, RuntimeConfig(**given), vocab_size)


def _setting(spec: str, part: str) -> tuple[str, Any]:
    name, equals, text = part.partition("=")
    name, text = name.strip().replace("-", "_"), text.strip()
    fields = {field.name: field for field in dataclasses.fields(RuntimeConfig)}
    if not equals or not text:
        raise CommandError(f"--compare {spec}: {part!r} is not FIELD=VALUE")
    if name not in fields:
        raise CommandError(f"--compare {spec}: unknown setting {name!r}; it must be one of {', '.join(fields)}")
    kind = str(fields[name].type)
    value = _WORDS.get(text.lower(), text)
    if (kind == "bool") != isinstance(value, bool) or (value is None and "None" not in kind):
        allowed = "true or false" if kind == "bool" else kind
        raise CommandError(f"--compare {spec}: {name} is {text!r}; it must be {allowed}")
    if isinstance(value, str):
        value = _number(spec, name, kind, value)
    return name, value


def _number(spec: str, name: str, kind: str, text: str) -> Any:
    for type_name, convert in (("int", int), ("float", float)):
        if kind.startswith(type_name):
            try:
                return convert(text)
            except ValueError as error:
                raise CommandError(f"--compare {spec}: {name} is {text!r}; it must be {kind}") from error
    return text
