"""Checkpoints of several modalities: what the tensors of their language model are called, and those of the others.

The tables of `checkpoints.rules` name a language model's tensors as a checkpoint of it alone has them: `model` and
`lm_head` begin their names. Around other modalities they begin otherwise, in files of different origin differently.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

_BODY, _HEAD = "model", "lm_head"


@dataclass(frozen=True)
class Spelling:
    """How names begin: of the layers and the embedding (`body`), of the output matrix (`head`)."""

    body: str = _BODY
    head: str = _HEAD

    def of(self, name: str) -> str:
        """The name of a tensor or module of a language model alone, as this spelling has it; others as they are."""
        return _renamed(name, ((_BODY, self.body), (_HEAD, self.head)))

    def plain(self, name: str) -> str:
        """The inverse of `of`."""
        return _renamed(name, ((self.body, _BODY), (self.head, _HEAD)))


def _renamed(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    """The name with the first of the prefixes that it begins with replaced. Prefixes are whole dotted parts."""
    for old, new in prefixes:
        if f"{name}.".startswith(f"{old}."):
            return new + name[len(old) :]
    return name


PLAIN = Spelling()
MODULES = Spelling("model.language_model", _HEAD)  # the modules of transformers since 4.52; what Qwen 3 VL has
_PUBLISHED = Spelling("language_model.model", "language_model.lm_head")  # what Gemma 3 and Mistral 3 have
_PUBLISHED_BODY = Spelling("language_model.model", _HEAD)

# Architecture -> spellings of its files; the first where none fits.
_SPELLINGS: Mapping[str, Sequence[Spelling]] = {
    "Gemma3ForConditionalGeneration": (MODULES, _PUBLISHED, _PUBLISHED_BODY),
    "Mistral3ForConditionalGeneration": (MODULES, _PUBLISHED, _PUBLISHED_BODY),
    "Qwen2_5_VLForConditionalGeneration": (MODULES, PLAIN),
    "Qwen3VLForConditionalGeneration": (MODULES,),
}

_TOWERS = {
    r"(model\.)?vision_tower\..+": "of the vision tower; the language model alone is served",
    r"(model\.)?multi_modal_projector\..+": "of the projector from images to text; the language model alone is served",
}
_VISUAL = {r"(model\.)?visual\..+": "of the vision tower; the language model alone is served"}
# Architecture -> tensors of other modalities, with the reason that the report gives.
_OTHERS: Mapping[str, Mapping[str, str]] = {
    "Gemma3ForConditionalGeneration": _TOWERS,
    "Mistral3ForConditionalGeneration": _TOWERS,
    "Qwen2_5_VLForConditionalGeneration": _VISUAL,
    "Qwen3VLForConditionalGeneration": _VISUAL,
}


def spelling_of(architecture: str, names: Container[str]) -> Spelling:
    """How a file with these tensors spells the language model's."""
    candidates = _SPELLINGS.get(architecture, (PLAIN,))
    fitting = [one for one in candidates if one.of("model.embed_tokens.weight") in names] or candidates[:1]
    return next((one for one in fitting if one.of("lm_head.weight") in names), fitting[0])


def has_head(architecture: str, names: Container[str]) -> bool:
    """Whether there is an output matrix among the tensors."""
    return spelling_of(architecture, names).of("lm_head.weight") in names


def module_names(architecture: str, name: str) -> tuple[str, ...]:
    """What settings of a quantized checkpoint may call a module that the file calls `name`, which comes first.

    Quantizers write the names of the modules that they have in memory, and transformers saves tensors under the names
    that the model was published with.
    """
    spellings = _SPELLINGS.get(architecture)
    if spellings is None:
        return (name,)
    own = next((one for one in spellings if one.plain(name) != name), PLAIN)
    return tuple(dict.fromkeys((name, MODULES.of(own.plain(name)))))


def is_one_of_several(architecture: str) -> bool:
    """Whether the language model is part of a checkpoint of several modalities."""
    return architecture in _SPELLINGS


def of_another_modality(architecture: str, name: str) -> str | None:
    """Why a tensor is not read, if it is of another modality than text."""
    patterns = _OTHERS.get(architecture, {})
    return next((reason for pattern, reason in patterns.items() if re.fullmatch(pattern, name)), None)
