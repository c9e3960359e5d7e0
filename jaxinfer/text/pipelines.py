"""Which tokenization pipeline a folder gets: the rules of transformers 5.24, written as data and small builders.

transformers 5 does not always run the pipeline that tokenizer.json describes. For a few tokenizer classes it takes the
vocabulary, the merges and the post-processor from the file and rebuilds the normalizer, the pre-tokenizer and the
decoder from the class. What a folder gets depends on `tokenizer_class` (tokenizer_config.json, else config.json) and on
`model_type` (config.json). We follow it exactly, so that ids are the same; where that departs from the file, the loaded
tokenizer's `notes` say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

GENERIC = "TokenizersBackend"
# "PreTrainedTokenizerFast" arrives here without its "Fast".
_GENERIC_NAMES = frozenset({GENERIC, "PreTrainedTokenizer", "PythonBackend", "BloomTokenizer"})
# Names of classes that transformers no longer has, and the classes that it takes for them.
_ALIASES = {"Phi3Tokenizer": "LlamaTokenizer"}

# model_type -> the class transformers has registered for it (without optional packages); absent: none is registered.
_REGISTERED = {
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "granite": GENERIC,
    "ministral": GENERIC,
    "ministral3": GENERIC,
    "mistral": GENERIC,
    "mistral3": GENERIC,
    "olmo2": GENERIC,
    "olmo3": GENERIC,
    "phi": "GPT2Tokenizer",
    "phi3": GENERIC,
    "qwen2": "Qwen2Tokenizer",
    "qwen2_5_vl": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_vl": "Qwen2Tokenizer",
}
# Model types whose folders are known to name a wrong class: the registered one is used instead.
_WRONG_CLASS_IN_FOLDER = frozenset({"phi3", "qwen2"})

# The split of Qwen2's pre-tokenizer, as its class defines it.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Vocab = dict[str, int]
Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class Recipe:
    """How one tokenizer class makes a backend from a vocabulary.

    Attributes:
        name: the class's name in transformers, without "Fast".
        special_tokens: the class's own named tokens, used where no file mentions the name.
        build: (vocab, merges, tokenizer_config, unk_token) -> backend without added tokens or post-processor.
        adds_bos: BOS comes before a text unless `add_bos_token` says otherwise, whatever the file's post-processor is.
    """

    name: str
    special_tokens: Mapping[str, str | None]
    build: Callable[[Vocab, Merges, Mapping[str, Any], str | None], Tokenizer]
    adds_bos: bool = False


def class_name(
    *,
    tokenizer_class: str | None,
    config_class: str | None,
    model_type: str | None,
    byte_level_json: bool,
    own_code: bool = False,
) -> str:
    """The tokenizer class that transformers would instantiate, without the "Fast" suffix.

    Args:
        tokenizer_class: `tokenizer_class` of tokenizer_config.json.
        config_class: `tokenizer_class` of config.json.
        model_type: `model_type` of config.json.
        byte_level_json: whether tokenizer.json mentions ByteLevel.
        own_code: whether `auto_map` of tokenizer_config.json names code for the tokenizer. It is not run, as without
            trust_remote_code, but transformers then takes the declared class without looking for a wrong one.
    """
    declared = tokenizer_class or config_class
    declared = declared.removesuffix("Fast") if declared else None
    registered = _REGISTERED.get(model_type or "")
    wrong = model_type in _WRONG_CLASS_IN_FOLDER
    if own_code:
        return _normal(declared or registered or GENERIC)
    if declared == "LlamaTokenizer" and byte_level_json and not wrong:
        # Llama 3 style folders that still name the Llama 2 class, whose pipeline is not byte-level.
        return GENERIC
    if declared is not None and registered is not None and registered != declared:
        if registered == GENERIC:
            return GENERIC
        return _normal(registered if wrong else declared)
    return _normal(declared or registered or GENERIC)


def _normal(name: str) -> str:
    return GENERIC if name in _GENERIC_NAMES else _ALIASES.get(name, name)


def recipe_for(name: str) -> Recipe | None:
    """The recipe of a class that rebuilds its pipeline; None for one whose pipeline is the file's own."""
    return _RECIPES.get(name)


def _llama(vocab: Vocab, merges: Merges, config: Mapping[str, Any], unk_token: str | None) -> Tokenizer:
    """Llama 2: bytes for unknown characters; a space before the text, or with `legacy` before every stretch of it.

    `legacy` is false unless the folder says otherwise (transformers 4 had it true). The Llama class gives the model
    no unknown token: what has no bytes in the vocabulary vanishes.
    """
    add_prefix_space = config.get("add_prefix_space")
    add_prefix_space = True if add_prefix_space is None else bool(add_prefix_space)
    scheme = "never"
    if add_prefix_space:
        scheme = "always" if config.get("legacy", False) else "first"
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, dropout=None))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if add_prefix_space:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _code_llama(vocab: Vocab, merges: Merges, config: Mapping[str, Any], unk_token: str | None) -> Tokenizer:
    """Code Llama: as Llama 2, but `legacy` is not looked at, unknown characters have a token, and decoding always drops
    the first space."""
    add_prefix_space = config.get("add_prefix_space")
    backend = Tokenizer(
        BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, dropout=None, unk_token=str(unk_token))
    )
    scheme = "never" if add_prefix_space is not None and not add_prefix_space else "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return backend


def _gemma(vocab: Vocab, merges: Merges, config: Mapping[str, Any], unk_token: str | None) -> Tokenizer:
    """Gemma: spaces become ▁, no space is put before the text, bytes for unknown characters."""
    backend = Tokenizer(
        BPE(vocab=vocab, merges=merges, fuse_unk=True, unk_token=str(unk_token), dropout=None, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _byte_level_bpe(vocab: Vocab, merges: Merges) -> Tokenizer:
    backend = Tokenizer(
        BPE(
            vocab=vocab,
            merges=merges,
            dropout=None,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _qwen2(vocab: Vocab, merges: Merges, config: Mapping[str, Any], unk_token: str | None) -> Tokenizer:
    """Qwen2/2.5/3: NFC, its own split, byte-level."""
    backend = _byte_level_bpe(vocab, merges)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=False),
        ]
    )
    return backend


def _gpt2(vocab: Vocab, merges: Merges, config: Mapping[str, Any], unk_token: str | None) -> Tokenizer:
    """GPT-2: byte-level with GPT-2's split."""
    backend = _byte_level_bpe(vocab, merges)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    return backend


_END = "<|endoftext|>"
_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("LlamaTokenizer", {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, _llama),
        Recipe(
            "CodeLlamaTokenizer",
            {
                "unk_token": "<unk>",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "prefix_token": "▁<PRE>",
                "middle_token": "▁<MID>",
                "suffix_token": "▁<SUF>",
                "eot_token": "▁<EOT>",
                "fill_token": "<FILL_ME>",
            },
            _code_llama,
            adds_bos=True,
        ),
        Recipe(
            "GemmaTokenizer",
            {
                "unk_token": "<unk>",
                "bos_token": "<bos>",
                "eos_token": "<eos>",
                "pad_token": "<pad>",
                "mask_token": "<mask>",
            },
            _gemma,
        ),
        Recipe("Qwen2Tokenizer", {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END}, _qwen2),
        Recipe("GPT2Tokenizer", {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None}, _gpt2),
    )
}
