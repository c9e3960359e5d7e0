"""load_tokenizer: what it refuses, what it says, what the digest covers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.text import TokenizerError, load_tokenizer
from tests.jaxinfer.text.golden_cases import GOLDENS, case, tokenizer, write_folder


def _vocabulary(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / "vocabularies" / name).read_text(encoding="utf-8"))


def test_absent_folder_and_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "tokenizer.json, tokenizer.model, tekken.json" in str(caught.value)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"found vocab\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": ', r"tokenizer\.json is not valid JSON"),
        ("tokenizer.json", b"[]", r"tokenizer\.json must hold a JSON object, not list"),
        ("tokenizer.json", b"{}", r"tokenizer\.json is not a tokenizer of the tokenizers library"),
        ("tokenizer.json", b'{"added_tokens": 3}', r"tokenizer\.json: added_tokens must be a list"),
        ("tokenizer.json", b"\xff\xfe", r"tokenizer\.json is not valid UTF-8"),
        ("tokenizer.json", b"[" * 100_000, r"tokenizer\.json is not valid JSON"),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", b'{"tokenizer_class": 5}', r"tokenizer_class must be a string, got 5"),
        ("tokenizer_config.json", b'{"bos_token": 5}', r"bos_token must be a string or an object.*got 5"),
        ("tokenizer_config.json", b'{"extra_special_tokens": 5}', r"extra_special_tokens must be a list or an object"),
        ("tokenizer_config.json", b'{"additional_special_tokens": [5]}', r"additional_special_tokens|extra_special"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "y"}}}', r"token id must be an integer"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": "y"}}', r"added_tokens_decoder\[7\] must be"),
        ("tokenizer_config.json", b'{"chat_template": 7}', r"chat_template must be a string or named strings, got 7"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "x"}]}', r"objects with name and template"),
        ("special_tokens_map.json", b'{"eos_token": 1}', r"special_tokens_map\.json: eos_token must be a token"),
        ("added_tokens.json", b'{"<x>": "one"}', r"added_tokens\.json: token id must be an integer"),
        ("config.json", b'{"model_type": 1}', r"config\.json: model_type must be a string"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja is not valid UTF-8"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    entry = case("byte_level")
    write_folder(tmp_path, {**entry, "files": {}})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "no spec"])
def test_a_corrupt_sentencepiece_model_is_named(tmp_path: Path, damage: str) -> None:
    data = (GOLDENS / "vocabularies" / "sp_bpe.model").read_bytes()
    damaged = {"empty": b"", "garbage": b"\x0f\xff" * 50, "truncated": data[: len(data) // 2 + 1], "no spec": b"\n\x00"}
    (tmp_path / "tokenizer.model").write_bytes(damaged[damage])
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "decoder WordPiece is not supported"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "decoder BPEDecoder is not supported"),
        (
            {
                "type": "Sequence",
                "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}],
            },
            r"Strip\(stop=1\)",
        ),
        (
            {
                "type": "Sequence",
                "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "ab"}, "content": ""}],
            },
            "Replace.*after Fuse",
        ),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}, "ByteFallback after Fuse"),
        (
            {
                "type": "Sequence",
                "decoders": [
                    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "ByteLevel combines only with Fuse",
        ),
    ],
)
def test_a_decoder_that_cannot_stream_is_refused(tmp_path: Path, decoder: dict[str, Any], message: str) -> None:
    document = _vocabulary("word_level.json") | {"decoder": decoder}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_tokenizer_json_comes_before_tokenizer_model(tmp_path: Path) -> None:
    write_folder(tmp_path, case("byte_level"))
    (tmp_path / "tokenizer.model").write_bytes(b"not even a model")
    assert load_tokenizer(tmp_path).encode("hello") == tokenizer("byte_level").encode("hello")


def test_the_model_type_can_be_given_instead_of_read(tmp_path: Path) -> None:
    entry = case("llama_json_mistral")
    write_folder(tmp_path, entry, **{"config.json": None})
    text = "a</s>b"
    as_mistral = load_tokenizer(tmp_path, model_type="mistral").encode(text)
    assert as_mistral == tokenizer("llama_json_mistral").encode(text)
    # Without a model type the declared Llama class decides, and this one is legacy as well; its decoder is the same.
    assert load_tokenizer(tmp_path).notes
    assert not load_tokenizer(tmp_path, model_type="mistral").notes


def test_notes_say_where_files_are_not_followed(tmp_path: Path) -> None:
    assert any(
        "unigram model, but LlamaTokenizer reads it as BPE" in note for note in tokenizer("llama_model_unigram").notes
    )
    assert any("space before the text" in note for note in tokenizer("generic_model_bpe").notes)
    assert any("replaces the pre_tokenizer" in note for note in tokenizer("gpt2_class").notes)
    assert tokenizer("byte_level").notes == ()
    assert tokenizer("llama_model_legacy").notes == ()
    unknown = write_folder(
        tmp_path, case("model_alone"), **{"tokenizer_config.json": {"tokenizer_class": "CamembertTokenizer"}}
    )
    assert any("CamembertTokenizer has no rules of its own here" in note for note in load_tokenizer(unknown).notes)
    for name in ("byte_level_asks_for_a_space", "byte_level_asks_for_none"):
        assert any("is passed over, as in transformers 5.24" in note for note in tokenizer(name).notes)
    (note,) = tokenizer("llama_model").notes
    assert "does not say legacy: it is false as in transformers 5" in note


def test_the_digest_covers_files_and_class(tmp_path: Path) -> None:
    entry = case("llama_json")
    first = load_tokenizer(write_folder(tmp_path / "a", entry)).content_digest
    assert load_tokenizer(write_folder(tmp_path / "b", entry)).content_digest == first
    assert len(first) == 64
    config = entry["files"]["tokenizer_config.json"]
    others = {
        load_tokenizer(write_folder(tmp_path / str(number), entry, **files)).content_digest
        for number, files in enumerate(
            (
                {"tokenizer_config.json": config | {"legacy": True}},
                {"chat_template.jinja": "x"},
                {"config.json": {"model_type": "mistral"}},
                {"added_tokens.json": {}},
            )
        )
    }
    assert len(others | {first}) == 5
    # Nothing else in config.json matters: a converted checkpoint may carry another one.
    same = write_folder(tmp_path / "c", entry, **{"config.json": {"model_type": "llama", "hidden_size": 8}})
    assert load_tokenizer(same).content_digest == first


def test_importing_the_text_layer_imports_no_framework() -> None:
    code = (
        "import sys, jaxinfer.text; "
        "print([m for m in ('jax', 'jaxlib', 'flax', 'torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_code_of_the_folders_own_is_not_run_and_a_note_says_so(tmp_path: Path) -> None:
    entry = case("llama_json_phi3")
    config = entry["files"]["tokenizer_config.json"]
    config = json.loads(config) if isinstance(config, str) else config
    mapped = config | {"auto_map": {"AutoTokenizer": ["tokenization_phi3.Phi3Tokenizer", None]}}
    folder = write_folder(tmp_path, entry, **{"tokenizer_config.json": mapped})
    assert any("auto_map" in note for note in load_tokenizer(folder).notes)


def test_a_post_processor_with_an_undefined_token_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, case("word_level"))
    document = json.loads((folder / "tokenizer.json").read_text())
    step = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<nowhere>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    for outer in (step, {"type": "Sequence", "processors": [step]}):
        (folder / "tokenizer.json").write_text(json.dumps(document | {"post_processor": outer}))
        with pytest.raises(TokenizerError, match=r"tokenizer\.json.*'<nowhere>'"):
            load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer_config.json", '{"bos_token": "\\ud800"}', "half of a surrogate pair"),
        ("added_tokens.json", '{"\\udfff": 1}', "half of a surrogate pair"),
        ("tokenizer_config.json", '{"model_max_length": ' + "1" * 5000 + "}", "is not valid JSON"),
    ],
)
def test_what_json_allows_and_text_or_python_does_not_is_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = write_folder(tmp_path, case("llama_json"), **{name: text})
    with pytest.raises(TokenizerError, match=f"{name} .*{message}"):
        load_tokenizer(folder)
