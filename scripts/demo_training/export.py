"""The trained network as a Hugging Face folder that transformers loads as LlamaForCausalLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import sentencepiece
from safetensors.numpy import save

from demo_training.hf_tokenizer import write as write_tokenizer_json
from demo_training.network import NetworkConfig
from demo_training.tokenizer import BOS, CHAT_PIECES, CHAT_TEMPLATE, END, EOS, PAD, UNK

_LAYER_MATRICES = {
    "self_attn.q_proj": ("attention", "q"),
    "self_attn.k_proj": ("attention", "k"),
    "self_attn.v_proj": ("attention", "v"),
    "self_attn.o_proj": ("attention", "o"),
    "mlp.gate_proj": ("mlp", "gate"),
    "mlp.up_proj": ("mlp", "up"),
    "mlp.down_proj": ("mlp", "down"),
}
_LAYER_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def hf_tensors(params: dict[str, Any], config: NetworkConfig) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face's names, matrices as (out, in), all bfloat16. The tied output has no tensor."""
    tensors = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["norm"]["scale"]}
    for index in range(config.layers):
        layer, prefix = params["layers"][index], f"model.layers.{index}"
        for name, (module, matrix) in _LAYER_MATRICES.items():
            tensors[f"{prefix}.{name}.weight"] = np.asarray(layer[module][matrix]).T
        for name, module in _LAYER_NORMS.items():
            tensors[f"{prefix}.{name}.weight"] = layer[module]["scale"]
    return {name: np.ascontiguousarray(np.asarray(a), dtype=ml_dtypes.bfloat16) for name, a in tensors.items()}


def hf_config(config: NetworkConfig, tokenizer: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": tokenizer.eos_id(),
        "pad_token_id": tokenizer.pad_id(),
    }


def hf_tokenizer_config(tokenizer: sentencepiece.SentencePieceProcessor, context: int) -> dict[str, Any]:
    """tokenizer_config.json, with the special tokens by id as transformers wants them."""
    special = [UNK, BOS, EOS, PAD, *CHAT_PIECES]
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {str(tokenizer.piece_to_id(s)): {"content": s, **flags} for s in special},
        "additional_special_tokens": CHAT_PIECES,
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def _write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    temporary = folder / f"{name}.partial"
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / name)


def export(
    folder: Path, params: dict[str, Any], config: NetworkConfig, tokenizer_file: Path, texts: Iterable[str]
) -> None:
    """Writes the folder: weights and tokenizer first, config.json last, so that half a folder does not load.

    Raises:
        ValueError: tokenizer.json would not agree with tokenizer.model on one of the texts.
    """
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    weights = folder / "model.safetensors.partial"
    weights.write_bytes(save(hf_tensors(params, config), metadata={"format": "pt"}))
    weights.replace(folder / "model.safetensors")
    shutil.copyfile(tokenizer_file, folder / "tokenizer.model")
    write_tokenizer_json(folder / "tokenizer.json", tokenizer, texts)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(folder, "tokenizer_config.json", hf_tokenizer_config(tokenizer, config.context))
    generation = {
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": [tokenizer.eos_id(), tokenizer.piece_to_id(END)],
        "pad_token_id": tokenizer.pad_id(),
        # Most of what the demo is asked has one right answer; a little chance keeps its stories from being one story.
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
    }
    _write_json(folder, "generation_config.json", generation)
    _write_json(folder, "config.json", hf_config(config, tokenizer))
