"""The folders whose tokenizers make_text_goldens.py records: vocabulary, JSON files, texts. Data only."""

from __future__ import annotations

from typing import Any

SHARED_SPECIALS = ("<|begin|>", "<|end|>", "<unk>", "<s>", "</s>")

# Texts of inputs.json that exercise special tokens and spaces; variants of a pipeline record only these.
_SHORT = [0, 1, 5, 6, 9, 11, 16, 17, 27, 28, 29, 30, 32, 33, 34, 35, 36, 45, 46]


def _token(content: str, **flags: bool) -> dict[str, Any]:
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **base, **flags}


_FLAGGED = {
    "<|strip|>": {"lstrip": True, "rstrip": True},
    "<|word|>": {"single_word": True},
    "<|norm|>": {"normalized": True, "special": False},
    "<|end|>": {"rstrip": True},
    "<| 空 😀|>": {},  # characters that the byte-level alphabet does not have
}
_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_BYTE_TOKENS = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


def _decoder(start: int, fixed: dict[int, str], **more: dict[str, bool]) -> dict[str, Any]:
    tokens = {str(index): _token(content) for index, content in fixed.items()}
    for offset, (content, flags) in enumerate((more or _FLAGGED).items()):
        tokens[str(start + offset)] = _token(content, **flags)
    # Not in the order of the ids: that must not matter.
    return dict(reversed(tokens.items()))


def _case(
    name: str,
    vocabulary: str,
    config: dict[str, Any] | None,
    *,
    model_type: str | None = "llama",
    texts: list[int] | None = _SHORT,
    **files: Any,
) -> dict[str, Any]:
    contents: dict[str, Any] = {}
    if config is not None:
        contents["tokenizer_config.json"] = config
    if model_type is not None:
        contents["config.json"] = {"model_type": model_type}
    contents |= {f"{key}.json": value for key, value in files.items()}
    return {"name": name, "vocabulary": vocabulary, "files": contents, "texts": texts}


def _llama(**config: Any) -> dict[str, Any]:
    return {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False} | _LLAMA_TOKENS | config


_FIXED = {0: "<unk>", 1: "<s>", 2: "</s>"}

CASES: list[dict[str, Any]] = [
    _case(
        "byte_level",
        "byte_level.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": _decoder(420, {}), **_BYTE_TOKENS},
        texts=None,
    ),
    _case("byte_level_llama_class", "byte_level.json", {"tokenizer_class": "LlamaTokenizerFast", **_BYTE_TOKENS}),
    _case(
        "byte_level_prefix",
        "byte_level_prefix.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "image_token": "<image>",
            "additional_special_tokens": ["<|turn|>", {"__type": "AddedToken", **_token("<|strip|>", lstrip=True)}],
            "clean_up_tokenization_spaces": True,
            **_BYTE_TOKENS,
        },
        texts=None,
    ),
    _case(
        "gpt2_class",
        "byte_level_nfc.json",
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **_BYTE_TOKENS},
    ),
    _case(
        "gpt2_class_prefix_space",
        "byte_level_nfc.json",
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "eos_token": "<|end|>"},
        texts=[0, 1, 5, 6, 10, 14],
    ),
    _case("no_class_granite", "byte_level_nfc.json", _BYTE_TOKENS, model_type="granite", texts=[5, 10, 14, 25]),
    _case(
        "qwen2_forced",
        "byte_level_nfc.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|end|>"},
        model_type="qwen2",
        texts=[5, 9, 10, 11, 14, 25, 36],
    ),
    _case(
        "qwen3_declared",
        "byte_level_nfc.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": _decoder(420, {0: "<|begin|>", 1: "<|end|>"}, **{"<|turn|>": {"special": False}}),
            "additional_special_tokens": ["<|turn|>", "<|strip|>"],
            "pad_token": "<|begin|>",
            "eos_token": "<|end|>",
        },
        model_type="qwen3",
        texts=None,
    ),
    _case(
        "legacy_files",
        "byte_level.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<unk>"},
        special_tokens_map={
            "bos_token": _token("<|begin|>"),
            "eos_token": "<|end|>",
            "pad_token": "<|turn|>",
            "additional_special_tokens": ["<image>"],
        },
        added_tokens={"<|word|>": 420, "<image>": 421},
    ),
    _case(
        "repeated_spellings",
        "byte_level.json",
        {
            "tokenizer_class": "TokenizersBackend",
            "unk_token": "<|turn|>",
            "cls_token": {"__type": "AddedToken", **_token("<|turn|>", single_word=True, special=False)},
            "extra_special_tokens": ["<|turn|>"],
        },
        texts=[5, 28, 32, 33],
    ),
    _case(
        "objects_and_added_tokens",
        "byte_level.json",
        {
            "split_special_tokens": True,
            "additional_special_tokens": [{"__type": "AddedToken", **_token("<|turn|>", rstrip=True)}, "<image>"],
        },
        texts=[5, 28, 32, 33, 37],
        added_tokens={"<|turn|>": 420, "<image>": 421},
        special_tokens_map={"additional_special_tokens": ["<|begin|>"], "eos_token": _token("<|end|>", lstrip=True)},
    ),
    _case("llama_json", "llama.json", _llama(), texts=None),
    _case("llama_json_legacy", "llama.json", _llama(legacy=True, add_bos_token=False)),
    _case("llama_json_no_prefix", "llama.json", _llama(add_prefix_space=False)),
    _case("llama_json_mistral", "llama.json", _llama(legacy=True), model_type="mistral"),
    _case(
        "llama_json_phi3",
        "llama.json",
        _llama(added_tokens_decoder=_decoder(420, _FIXED, **{"<|turn|>": {"rstrip": True, "special": False}})),
        model_type="phi3",
        texts=None,
    ),
    _case("gemma_json", "gemma.json", {"tokenizer_class": "GemmaTokenizer", **_LLAMA_TOKENS}, model_type="gemma3_text"),
    _case("gemma_no_config", "gemma.json", None, model_type="gemma2"),
    _case("llama_model", "sp_bpe.model", _llama(), texts=None),
    _case("llama_model_legacy", "sp_bpe.model", _llama(legacy=True, add_eos_token=True)),
    _case("llama_model_no_prefix", "sp_bpe.model", _llama(add_prefix_space=False, add_bos_token=False)),
    _case("llama_model_defaults", "sp_bpe.model", {"tokenizer_class": "LlamaTokenizer"}, texts=[0, 1, 5, 28, 32]),
    _case(
        "llama_model_added",
        "sp_bpe.model",
        _llama(added_tokens_decoder=_decoder(420, _FIXED), pad_token="<pad>", additional_special_tokens=["<image>"]),
        texts=None,
    ),
    # Code Llama's class: tokens of its own, BOS whatever the file says, `legacy` not looked at.
    _case("code_llama_json", "llama.json", {"tokenizer_class": "CodeLlamaTokenizer", "legacy": True, **_LLAMA_TOKENS}),
    _case(
        "code_llama_model",
        "sp_bpe.model",
        {"tokenizer_class": "CodeLlamaTokenizer", "add_bos_token": False, "suffix_token": "▁<SUF>", **_LLAMA_TOKENS},
    ),
    _case("code_llama_defaults", "sp_bpe.model", {"tokenizer_class": "CodeLlamaTokenizer", "add_prefix_space": False}),
    # With a tokenizer.json that is used as it stands, add_prefix_space says nothing.
    _case("byte_level_asks_for_a_space", "byte_level.json", {**_BYTE_TOKENS, "add_prefix_space": True}),
    _case("byte_level_asks_for_none", "byte_level_prefix.json", {**_BYTE_TOKENS, "add_prefix_space": False}),
    _case("llama_model_unigram", "sp_unigram.model", _llama(legacy=True), texts=[0, 5, 9, 17, 28, 32]),
    _case("generic_model_bpe", "sp_bpe.model", _llama(), model_type="mistral"),
    _case(
        "generic_model_unigram",
        "sp_unigram.model",
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": True},
        texts=None,
    ),
    _case("generic_model_rules", "sp_rules.model", {"clean_up_tokenization_spaces": True}, texts=None),
    _case("model_alone", "sp_bpe.model", None, model_type=None, texts=[0, 5, 17, 28]),
    # Only the folder's words about `legacy` differ from generic_model_bpe.
    _case("generic_model_not_legacy", "sp_bpe.model", _llama(legacy=False), model_type="mistral"),
    _case(
        "generic_model_phi3",
        "sp_bpe.model",
        _llama(
            # 400 and 401 have placeholders' new names; 402 may not take that of 403, which keeps its own.
            added_tokens_decoder=_decoder(
                420,
                {**_FIXED, 400: "<|assistant|>", 401: "<|user|>", 402: "▁the"},
                **{"<|word|>": {"single_word": True}, "<|norm|>": {"normalized": True, "special": False}},
            )
        ),
        model_type="phi3",
        texts=None,
    ),
    # Scores that are not in the order of the ids, no space before the text, extra spaces dropped.
    _case("generic_model_scores", "sp_scores.model", {"add_bos_token": True}, model_type="olmo2", texts=None),
    _case("gemma_model", "sp_bpe.model", {"add_bos_token": True, "bos_token": "<s>"}, model_type="gemma3_text"),
    _case(
        "metaspace_unigram",
        "unigram.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True, **_LLAMA_TOKENS},
        texts=None,
    ),
    _case(
        "word_level",
        "word_level.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "split_special_tokens": True},
    ),
]

_SAY = "{{ messages[0].content }}"
TEMPLATE_FOLDERS: list[dict[str, Any]] = [
    {},
    {"tokenizer_config.json": {"chat_template": "config:" + _SAY}},
    {"tokenizer_config.json": {"chat_template": "config:" + _SAY}, "chat_template.jinja": "file:\r\n" + _SAY + "\n"},
    {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "default", "template": "d:" + _SAY},
                {"name": "tool_use", "template": "t:" + _SAY},
                {"name": "rag", "template": "r:" + _SAY},
            ]
        }
    },
    {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "r:" + _SAY}]}},
    {
        "tokenizer_config.json": {"chat_template": "config:" + _SAY},
        "chat_template.jinja": "file:" + _SAY,
        "additional_chat_templates/rag.jinja": "r:" + _SAY,
        "additional_chat_templates/tool_use.jinja": "t:" + _SAY,
    },
    {"additional_chat_templates/rag.jinja": "r:" + _SAY},
]
