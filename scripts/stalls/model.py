"""A model folder without weights, with a tokenizer like those of real models: some 32,000 tokens and bytes."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.fakes import MODEL_CONFIG, write_model

BOS, EOS, UNK, FIRST_BYTE = 256, 257, 258, 259
VOCAB_SIZE = 32_000
MAX_MODEL_LEN = 32_768

# What chat templates of published models do: loops, tests of roles and reasoning, tools as JSON, documents.
_TEMPLATE = """\
{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>{% endif %}
{%- for document in documents or [] %}<document>{{ document.title }}: {{ document.text }}</document>{% endfor %}
{%- for message in messages %}
<|{{ message.role }}|>{% set content = message.content or '' %}
{%- if message.role == 'assistant' and '</think>' in content %}{% set content = content.split('</think>')[-1].strip() %}
{%- endif %}{{ content | trim }}{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


@functools.cache
def words(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    syllables = [
        "".join(rng.sample("bcdfglmnprst", 1) + rng.sample("aeiou", 1) + rng.choice([[], ["n"]])) for _ in range(90)
    ]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count)]


@functools.cache
def text(characters: int, seed: int = 5) -> str:
    """Words of which most are tokens or two."""
    vocabulary = words(seed, 4000)
    rng = random.Random(seed)
    size, found = 0, []
    while size < characters:
        word = rng.choice(vocabulary)
        found.append(word)
        size += len(word) + 1
    return " ".join(found)[:characters]


def write(folder: Path, kind: str) -> Path:
    """kind: "bpe", or "bytes" for the tests' tokenizer of 258 tokens."""
    write_model(folder)
    if kind == "bpe":
        _write_bpe(folder)
    config = {**MODEL_CONFIG, "max_position_embeddings": MAX_MODEL_LEN}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def vocab_size(kind: str) -> int:
    return VOCAB_SIZE if kind == "bpe" else 260


def _write_bpe(folder: Path) -> None:
    """As Llama 2's: spaces become a mark, unknown characters their bytes. The fake engine's tokens are ASCII codes, so
    those ids are the characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    wanted = VOCAB_SIZE - FIRST_BYTE - 256
    trainer = trainers.BpeTrainer(vocab_size=wanted, show_progress=False, min_frequency=1)
    trained.train_from_iterator([" ".join(words(5, 4000)), " ".join(words(6, 90_000))], trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    pieces = [chr(code) if 0x21 <= code < 0x7F else f"<unused{code}>" for code in range(256)]
    pieces[ord(" ")] = "▁"
    pieces += ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += dict.fromkeys("".join(merge) for merge in merges)
    vocab = {piece: index for index, piece in enumerate(pieces[:VOCAB_SIZE])}
    merges = [merge for merge in merges if {*merge, "".join(merge)} <= vocab.keys()]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", "<unk>")])
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**names, "tokenizer_class": "LlamaTokenizer", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
