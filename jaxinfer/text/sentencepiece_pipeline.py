"""A tokenizer.model read by its own settings: the pipeline for folders whose tokenizer class brings no rules.

The file says what sentencepiece does with a text before it cuts it: map characters, drop extra spaces, put a space
before it, write spaces as ▁. The pipeline here does the same with parts of the tokenizers library, so that ids are
those of sentencepiece itself, and of transformers from 5.24.0 on. Earlier releases left out the space, the dropped
spaces and the scores of the pieces (`releases_differ`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from jaxinfer.text.sentencepiece_model import (
    UNIGRAM,
    USER_DEFINED,
    SentencePieceModel,
    merges_by_id,
    merges_by_score,
)


def build(model: SentencePieceModel, names: Mapping[int, str], *, legacy: bool) -> Tokenizer:
    """The backend of a model, without added tokens or post-processor.

    names: id -> spelling of added tokens. A BPE piece takes the spelling that is given for its id, as Phi-3's reserved
    placeholders do, unless a piece that keeps its own has it. legacy: each stretch of text between added tokens gets a
    space before it, not only the first (`legacy` of tokenizer_config.json, true where it is absent).
    """
    spelling = _spelling(model, names)
    whole = [spelling[index] for index in model.ids_of_type(USER_DEFINED)]
    if model.model_type == UNIGRAM:
        core: Any = models.Unigram(vocab=model.pieces, unk_id=model.unk_id, byte_fallback=model.byte_fallback)
    else:
        core = models.BPE(
            vocab={piece: index for index, piece in spelling.items()},
            merges=merges_by_score(model, spelling),
            unk_token=model.unk_piece,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
            dropout=None,
            ignore_merges=bool(whole),
        )
    backend = Tokenizer(core)
    backend.normalizer = normalizers.Sequence(_normalizers(model, legacy))
    if steps := _pre_tokenizers(model, whole, legacy):
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.Sequence(_decoders(model))
    return backend


def releases_differ(model: SentencePieceModel) -> str | None:
    """In which way transformers before 5.24.0 gives other ids for this model; None where it gives the same."""
    found = []
    if model.add_dummy_prefix:
        found.append("put no space before the text")
    if model.remove_extra_whitespaces:
        found.append("kept extra spaces")
    if not model.escape_whitespaces:
        found.append("wrote spaces as ▁")
    spelling = _spelling(model, {})
    if model.model_type != UNIGRAM:
        # Rules of pieces that are not normal never apply to text here, so they alone are no difference worth a word.
        ours = merges_by_score(model, spelling)
        known = set(ours)
        by_id = merges_by_id({piece: index for index, piece in spelling.items()})
        if ours != [rule for rule in by_id if rule in known]:
            found.append("ranked merges by id, not by score")
    if not found:
        return None
    return f"read as sentencepiece and transformers 5.24 do; transformers before 5.24 {', '.join(found)}"


def _spelling(model: SentencePieceModel, names: Mapping[int, str]) -> dict[int, str]:
    """id -> how the vocabulary spells it; only BPE vocabularies are renamed."""
    spelling = {index: piece for index, (piece, _) in enumerate(model.pieces)}
    if model.model_type == UNIGRAM:
        return spelling
    kept = {piece for index, piece in spelling.items() if index not in names}
    return {
        index: names[index] if index in names and names[index] not in kept else piece
        for index, piece in spelling.items()
    }


def _normalizers(model: SentencePieceModel, legacy: bool) -> list[Any]:
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:  # spaces only: sentencepiece leaves line breaks and tabs alone
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if model.add_dummy_prefix and legacy:
        # Metaspace puts nothing before a text that begins with ▁; sentencepiece does.
        steps.append(normalizers.Replace(Regex(r"\A▁"), "▁▁"))
    return steps


def _pre_tokenizers(model: SentencePieceModel, whole: list[str], legacy: bool) -> list[Any]:
    """The space before the text, then user-defined pieces, which are never merged with their neighbours."""
    steps: list[Any] = []
    if model.add_dummy_prefix:
        scheme = "always" if legacy else "first"
        steps.append(pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False))
    if whole:
        longest_first = sorted(whole, key=len, reverse=True)
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), behavior="isolated"))
    return steps


def _decoders(model: SentencePieceModel) -> list[Any]:
    steps: list[Any] = [decoders.Replace("▁", " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    if model.byte_fallback or model.add_dummy_prefix:
        steps.append(decoders.Fuse())
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))  # after Fuse: of the whole text, not of each token
    return steps
