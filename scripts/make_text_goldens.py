"""Make the goldens of tests/goldens_text: what transformers encodes, decodes and renders for small tokenizers.

    python scripts/make_text_goldens.py [--only CASE]

Needs transformers, tokenizers and sentencepiece; it never imports the engine. The vocabularies are trained here on text
made here and committed beside the results (`vocabularies/`). A case is a folder as a user would have it: one vocabulary
and the JSON files around it, all stored in `cases.json` together with what transformers makes of them. Texts,
conversations and chat templates are hand-written: `inputs.json` and `templates/`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import importlib
import io
import json
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import sentencepiece
import tokenizers
import transformers
from text_golden_cases import CASES, SHARED_SPECIALS, TEMPLATE_FOLDERS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.utils import chat_template_utils

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens_text"
CLOCK = dt.datetime(2025, 3, 4, 5, 6, 7)
RANDOM_SEQUENCES = 10

_WORDS = re.split(
    " ",
    "the a of and to in it is was that for on are with as his they at be this from or had by hot but some what there "
    "we can out other were all your when up use word how said an each she which do their time if will way about many "
    "then them would write like so these her long make thing see him two has look more day could go come did my sound "
    "no most number who over know water than call first people may down side been now find hello world "
    "don't it's we've",
)
_FOREIGN = re.split(" ", "日本語の文字 中文字符 한국어 привет мир γειά σου שלום عالم नमस्ते สวัสดี café naïve über 👍 ❤️")


def corpus(seed: int, lines: int) -> Iterator[str]:
    """Lines of words with a skewed distribution, numbers, punctuation and a little of many scripts."""
    rng = random.Random(seed)
    for _ in range(lines):
        words = [rng.choice(_WORDS[: rng.randint(4, len(_WORDS))]) for _ in range(rng.randint(3, 12))]
        if rng.random() < 0.3:
            words.insert(rng.randrange(len(words)), str(rng.randint(0, 2025)))
        if rng.random() < 0.2:
            words.insert(rng.randrange(len(words)), rng.choice(_FOREIGN))
        if rng.random() < 0.2:
            words[0] = words[0].capitalize()
        yield rng.choice([" ", " ", " ", "  "]).join(words) + rng.choice(".,!?;\n")


def train_byte_level(
    *, prefix_space: bool, split: str | None, post_processor: Any, normalizer: Any = None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=split is None)]
    if split is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(split), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SHARED_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(1, 600), trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor(tokenizer)
    return tokenizer


def bos_template(bos: str) -> Any:
    return lambda tokenizer: processors.TemplateProcessing(
        single=[f"{bos}:0", "$A:0"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def train_sentencepiece(path: Path, kind: str, *, rules: bool = False, **options: Any) -> None:
    """Trains with the settings of Llama 2's tokenizer but for `options`; `rules` adds a small character map."""
    settings: dict[str, Any] = {
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.99,
        "hard_vocab_limit": False,
        "user_defined_symbols": ["<|turn|>"],
        "num_threads": 1,
        "minloglevel": 2,
        **options,
    }
    model = io.BytesIO()
    # The model file records the name of the rules file, so that must be the same on every machine.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if rules:
            Path("rules.tsv").write_text(_rules(), encoding="utf-8")
            settings["normalization_rule_tsv"] = "rules.tsv"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=corpus(2, 600), model_writer=model, model_type=kind, **settings
        )
    path.write_bytes(model.getvalue())


def shuffle_scores(path: Path) -> None:
    """Shuffles the scores of the normal pieces, some of them twice."""
    messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")  # generated, without stubs
    model = messages.ModelProto()
    model.ParseFromString(path.read_bytes())
    normal = [piece for piece in model.pieces if piece.type == piece.NORMAL]
    scores = [piece.score for piece in normal]
    random.Random(3).shuffle(scores)
    scores[1::7] = scores[::7][: len(scores[1::7])]  # some are equal: then the id decides
    for piece, score in zip(normal, scores, strict=True):
        piece.score = score
    path.write_bytes(model.SerializeToString(deterministic=True))


def _rules() -> str:
    """Full-width capitals and digits to ASCII, the fi ligature to two letters: a small table instead of NFKC's."""
    pairs = [(0xFF21 + i, f"{0x41 + i:X}") for i in range(26)] + [(0xFF10 + i, f"{0x30 + i:X}") for i in range(10)]
    return "".join(f"{source:X}\t{target}\n" for source, target in [*pairs, (0xFB01, "66 69")])


def convert_llama(model: Path, *, gemma: bool = False) -> Tokenizer:
    """A tokenizer.json from sentencepiece BPE pieces, with the pipeline that such files carried in transformers 4."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = [
        (index, cut, piece)
        for piece, index in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(piece[:cut], piece[cut:]) for _, cut, piece in sorted(merges)],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = bos_template("<s>")(tokenizer)
    return tokenizer


def metaspace_unigram(model: Path) -> Tokenizer:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def word_level() -> Tokenizer:
    words = ["<unk>", "<s>", "</s>", *sorted(set(_WORDS)), ".", ",", "!", "?", "日本語", "caf\u00e9"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.enable_padding(pad_id=2, pad_token="</s>")
    tokenizer.enable_truncation(max_length=7)
    return tokenizer


_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_vocabularies(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    train_sentencepiece(folder / "sp_bpe.model", "bpe")
    train_sentencepiece(folder / "sp_unigram.model", "unigram")
    train_sentencepiece(
        folder / "sp_rules.model", "unigram", rules=True, remove_extra_whitespaces=True, byte_fallback=False, pad_id=3
    )
    train_sentencepiece(folder / "sp_scores.model", "bpe", add_dummy_prefix=False, remove_extra_whitespaces=True)
    shuffle_scores(folder / "sp_scores.model")
    made = {
        "byte_level": train_byte_level(
            prefix_space=False, split=_LLAMA3_SPLIT, post_processor=bos_template("<|begin|>")
        ),
        "byte_level_prefix": train_byte_level(
            prefix_space=True, split=None, post_processor=lambda _: processors.ByteLevel(trim_offsets=False)
        ),
        "byte_level_nfc": train_byte_level(
            prefix_space=False, split=r"\p{N}|[^\p{N}]+", post_processor=None, normalizer=normalizers.NFC()
        ),
        "llama": convert_llama(folder / "sp_bpe.model"),
        "gemma": convert_llama(folder / "sp_bpe.model", gemma=True),
        "unigram": metaspace_unigram(folder / "sp_unigram.model"),
        "word_level": word_level(),
    }
    for name, tokenizer in made.items():
        data = json.loads(tokenizer.to_str())
        (folder / f"{name}.json").write_text(
            json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
        )


def write_folder(folder: Path, case: dict[str, Any]) -> None:
    """The files of a case. tests/jaxinfer/text/golden_cases.py does the same from cases.json."""
    vocabulary = OUT / "vocabularies" / case["vocabulary"]
    (folder / f"tokenizer{vocabulary.suffix}").write_bytes(vocabulary.read_bytes())
    for name, content in case["files"].items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def digest(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def run_case(case: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name), case)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    texts = []
    chosen = range(len(inputs["texts"])) if case["texts"] is None else case["texts"]
    for index in chosen:
        text = inputs["texts"][index]
        ids = tokenizer.encode(text)
        plain = tokenizer.encode(text, add_special_tokens=False)
        entry: dict[str, Any] = {"text": index, "ids": ids, "full": tokenizer.decode(ids)}
        if plain != ids:
            entry["plain"] = plain if len(plain) < 4 else [plain[0], len(plain), plain[-1]]
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        if skipped != entry["full"]:
            entry["skipped"] = skipped
        texts.append(entry)
    long = []
    for unit, count in inputs["long_texts"]:
        ids = tokenizer.encode(unit * count)
        long.append([len(ids), digest(ids), hashlib.sha256(tokenizer.decode(ids).encode()).hexdigest()])
    rng = random.Random(case["name"])
    sequences = []
    for _ in range(RANDOM_SEQUENCES):
        ids = [rng.randrange(len(tokenizer) + 2) for _ in range(rng.randint(1, 24))]
        sequences.append([ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)])
    return {
        **case,
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "special": [index for index in range(len(tokenizer)) if not tokenizer.decode([index], skip_special_tokens=True)
                    and tokenizer.decode([index])],
        "named": {key: tokenizer.convert_tokens_to_ids(value) for key, value in tokenizer.special_tokens_map.items()},
        "results": texts,
        "long": long,
        "random": sequences,
    }  # fmt: skip


class _FixedClock(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return cls.fromisoformat(CLOCK.isoformat())


def render(tokenizer: Any, messages: list[Any], **options: Any) -> Any:
    """The rendered text, or [error type, message]."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # whatever transformers raises is what the golden records
        return [type(error).__name__, str(error)]


def run_chats(inputs: dict[str, Any]) -> dict[str, Any]:
    chat_template_utils.datetime = _FixedClock
    case = next(case for case in CASES if case["name"] == "byte_level")
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name), case)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    chats = []
    for path in sorted((OUT / "templates").rglob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        template = str(path.relative_to(OUT / "templates").with_suffix(""))
        for conversation, messages in inputs["conversations"].items():
            if template.startswith("refused/") and conversation != "one":
                continue
            for variant, options in {
                "plain": {"add_generation_prompt": False},
                "prompt": {"add_generation_prompt": True},
                "tools": {
                    "add_generation_prompt": True,
                    "tools": inputs["tools"],
                    "enable_thinking": False,
                    "extra": ["<x>", {"k": 1}],
                    "documents": [{"title": "T", "text": "body"}],
                    "eos_token": "<over>",
                },
            }.items():
                if variant == "tools" and template not in ("chatml", "headers", "controls", "json_forms", "thinking"):
                    continue
                text = render(tokenizer, messages, chat_template=source, **options)
                chats.append({"template": template, "conversation": conversation, "variant": variant, "text": text})
    encoded = []
    for template in ("headers", "inst"):
        source = (OUT / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
        for conversation in ("dialogue", "special_in_text"):
            ids = tokenizer.apply_chat_template(
                inputs["conversations"][conversation], chat_template=source, add_generation_prompt=True
            )["input_ids"]
            encoded.append({"template": template, "conversation": conversation, "ids": ids})
    return {"clock": CLOCK.isoformat(), "rendered": chats, "encoded": encoded}


def run_template_folders(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Where a template comes from: files before tokenizer_config.json, names, tool_use."""
    results = []
    for files in TEMPLATE_FOLDERS:
        case = {**next(case for case in CASES if case["name"] == "byte_level")}
        case["files"] = {**case["files"], **files}
        config = {**case["files"]["tokenizer_config.json"], **files.get("tokenizer_config.json", {})}
        case["files"]["tokenizer_config.json"] = config
        with tempfile.TemporaryDirectory() as name:
            write_folder(Path(name), case)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        messages = inputs["conversations"]["one"]
        results.append(
            {
                "files": files,
                "chat_template": tokenizer.chat_template,
                "default": render(tokenizer, messages),
                "tools": render(tokenizer, messages, tools=inputs["tools"]),
                "named": render(tokenizer, messages, chat_template="rag"),
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="print one case instead of writing the files")
    arguments = parser.parse_args()
    inputs = json.loads((OUT / "inputs.json").read_text(encoding="utf-8"))
    if arguments.only:
        case = next(case for case in CASES if case["name"] == arguments.only)
        print(json.dumps(run_case(case, inputs), ensure_ascii=False, indent=1))
        return
    make_vocabularies(OUT / "vocabularies")
    versions = {module.__name__: module.__version__ for module in (transformers, tokenizers, sentencepiece)}
    cases = {"versions": versions, "cases": [run_case(case, inputs) for case in CASES]}
    chats = {"versions": versions, **run_chats(inputs), "folders": run_template_folders(inputs)}
    for name, content in (("cases.json", cases), ("chats.json", chats)):
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        # One line per entry, so that a change shows as one in a diff.
        text = text.replace('},{"', '},\n{"')
        (OUT / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
