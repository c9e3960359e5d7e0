"""Builds the folders that the tests of this room read: Hugging Face folders, tokenizers, hand-made safetensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.golden_recipe import load_case, write_checkpoint

VOCAB_SIZE = 261  # 256 bytes, three special tokens, two rows that no token uses
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with BOS (put in front of texts), EOS, PAD and a chat template; 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", "<pad>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_golden(folder: Path, case: str = "llama", **options: Any) -> Path:
    """A golden case as a complete Hugging Face folder, tokenizer included (its ids may exceed the tiny vocabulary)."""
    write_checkpoint(load_case(case), folder, **options)
    write_tokenizer(folder)
    return folder


def write_small_llama(folder: Path, *, layers: int = 2, hidden: int = 32, mlp: int = 48, **config: Any) -> Path:
    """A random Llama whose vocabulary fits `write_tokenizer`; untied, 4 query heads on 2 KV heads."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    (folder / "config.json").write_text(json.dumps(values | config))
    random = np.random.default_rng(7)

    def draw(*shape: int) -> np.ndarray:
        return (0.15 * random.standard_normal(shape, dtype=np.float32)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": draw(VOCAB_SIZE, hidden),
        "model.norm.weight": 1 + draw(hidden),
        "lm_head.weight": draw(VOCAB_SIZE, hidden),
    }
    for i in range(layers):
        prefix = f"model.layers.{i}."
        tensors |= {f"{prefix}self_attn.{name}_proj.weight": draw(hidden, hidden) for name in "qo"}
        tensors |= {f"{prefix}self_attn.{name}_proj.weight": draw(hidden // 2, hidden) for name in "kv"}
        tensors |= {f"{prefix}mlp.{name}_proj.weight": draw(mlp, hidden) for name in ("gate", "up")}
        tensors |= {f"{prefix}mlp.down_proj.weight": draw(hidden, mlp)}
        tensors |= {f"{prefix}{name}_layernorm.weight": 1 + draw(hidden) for name in ("input", "post_attention")}
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def edit_tensors(folder: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Replace, add or (None) remove tensors of a single-file folder."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: array for name, array in tensors.items() if array is not None}, path)


def edit_json(path: Path, **changes: Any) -> None:
    """Set the given keys of a JSON object; the value `...` removes the key."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def raw_safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with this header (an object, or the text itself), right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tree(folder: Path) -> list[str]:
    """Everything under a folder, hidden names included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
