"""Which matrix is rounded how: a TOML file of ordered rules over the scheme that was asked for.

    [[rule]]
    match = 'layers\\.(0|31)\\..*'    # a regular expression for the whole name of a matrix
    use = "keep"                     # or a scheme: int8, int4, fp8, mxfp4, w8a8, fp8-dynamic
    [[rule]]
    match = '.*\\.mlp\\.down'
    use = "int4"
    group = 32                       # with int8, int4 and fp8

The first rule that matches a matrix decides; what none matches gets the scheme of the command line. Names are the
decoder's: `layers.3.attention.qkv`, `layers.3.attention.out`, `layers.3.mlp.gate_up` (`layers.3.mlp.up` where there is
no gate), `layers.3.mlp.down`. A rule that decides about nothing is an error, because it is a misspelled one.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.files import CheckpointError
from checkpoints.quantizing.options import Quantizing, check_group
from jaxinfer.config import ConfigError, ModelConfig, MoeConfig, UnsupportedModelError, require
from jaxinfer.models.stored_matrix import StoredMatrix, input_sizes, matrix_names
from jaxinfer.quantization import SCHEMES, largest_group

KEEP = "keep"


@dataclass(frozen=True)
class Planned:
    """How one matrix is rounded. scheme: None keeps it. group: inputs that share a scale, None: all of them."""

    scheme: str | None
    group: int | None = None

    @property
    def stored(self) -> StoredMatrix | None:
        if self.scheme is None:
            return None
        one = SCHEMES[self.scheme]
        return StoredMatrix(one.kind, self.group, activations=one.activations)


@dataclass(frozen=True)
class _Rule:
    where: str  # file and number, for messages
    match: re.Pattern[str]
    use: str
    group: int | None


def plan_matrices(config: ModelConfig, asked: Quantizing) -> dict[str, Planned]:
    """{name: how it is rounded} for every matrix of the layers. Reads the policy and no weights.

    Raises:
        CheckpointError: the policy file cannot be read, or is not TOML.
        UnsupportedModelError: the model has experts.
        ConfigError: a rule with an unknown key or value, a bad pattern, one that decides about nothing, or a group that
            does not divide a matrix's inputs; file, rule, value and what is allowed are named.
    """
    assert asked.scheme is not None
    if any(isinstance(layer.feed_forward, MoeConfig) for layer in config.layers):
        raise UnsupportedModelError(
            f"quantize is {asked.scheme!r}; {config.architecture} has experts, which are rounded while they are loaded "
            "(quantization) and not while they are converted"
        )
    rules = [] if asked.policy is None else _read(asked.policy)
    used: set[str] = set()
    planned = {}
    for name in matrix_names(config):
        rule = next((rule for rule in rules if rule.match.fullmatch(name)), None)
        if rule is not None:
            used.add(rule.where)
        where, use, group = ("group", asked.scheme, asked.group) if rule is None else (rule.where, rule.use, rule.group)
        inputs = math.prod(input_sizes(name, config))
        planned[name] = Planned(None) if use == KEEP else _planned(where, name, use, group, inputs)
    for rule in rules:
        if rule.where in used:
            continue
        if any(rule.match.fullmatch(name) for name in planned):
            raise ConfigError(f"{rule.where}: match is {rule.match.pattern!r}; earlier rules decide for all it matches")
        raise ConfigError(
            f"{rule.where}: match is {rule.match.pattern!r}; it must match the whole name of a matrix, such as "
            f"{' or '.join(list(planned)[:: len(planned) - 1])}"
        )
    return planned


def _planned(where: str, name: str, scheme: str, group: int | None, inputs: int) -> Planned:
    if group is None and SCHEMES[scheme].groups:
        return Planned(scheme, largest_group(name, inputs, SCHEMES[scheme]))
    if group is not None:
        require(inputs % group == 0, f"{where}: group is {group}; it must divide the {inputs} inputs of {name}")
    return Planned(scheme, group)


def _read(path: Path) -> list[_Rule]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"{path}: expected TOML; found a fault: {error}") from error
    require(set(data) <= {"rule"}, f"{path}: has the keys {sorted(data)}; it must have [[rule]] tables only")
    rules = data.get("rule", [])
    require(
        isinstance(rules, list) and bool(rules) and all(isinstance(rule, dict) for rule in rules),
        f"{path}: rule is {rules!r:.80}; it must be one [[rule]] table or more",
    )
    return [_rule(f"{path}: rule {index}", rule) for index, rule in enumerate(rules, start=1)]


def _rule(where: str, data: Mapping[str, Any]) -> _Rule:
    unknown = sorted(data.keys() - {"match", "use", "group"})
    require(not unknown, f"{where}: has the unknown keys {unknown}; allowed are match, use and group")
    pattern, use, group = data.get("match"), data.get("use"), data.get("group")
    require(isinstance(pattern, str), f"{where}: match is {pattern!r}; it must be a regular expression")
    allowed = (*SCHEMES, KEEP)
    require(isinstance(use, str) and use in allowed, f"{where}: use is {use!r}; it must be one of {', '.join(allowed)}")
    assert isinstance(pattern, str)
    assert isinstance(use, str)
    require(group is None or use != KEEP, f"{where}: group is {group!r}; it does not go with use = {KEEP!r}")
    if use != KEEP:
        check_group(f"{where}: group", group, use)
    try:
        return _Rule(where, re.compile(pattern), use, group)
    except re.error as error:
        raise ConfigError(f"{where}: match is {pattern!r}; it must be a regular expression: {error}") from error
