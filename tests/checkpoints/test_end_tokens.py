"""Which tokens end a text: the tokenizer's, and generation_config.json's or else config.json's, as they are now."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.convert import convert
from checkpoints.end_tokens import served_end_tokens
from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from jaxinfer.config import RuntimeConfig
from jaxinfer.llm import LLM, build_engine
from tests.checkpoints.folders import edit_json, write_small_llama

OWN = 257  # </s>, which the tokenizer names
UNSAID: Any = ...

# config.json's, generation_config.json's (UNSAID: the key is missing; None: null) -> what ends a text
CASES: list[tuple[Any, Any, tuple[int, ...]]] = [
    (5, 7, (OWN, 7)),
    (5, UNSAID, (OWN, 5)),
    (5, None, (OWN, 5)),
    (5, [], (OWN, 5)),
    ([5, 6], [7, 8, 7], (OWN, 7, 8)),
    ([5, 6], UNSAID, (OWN, 5, 6)),
    (None, 7, (OWN, 7)),
    (None, None, (OWN,)),
    (UNSAID, [7, OWN], (OWN, 7)),
    (UNSAID, UNSAID, (OWN, 2)),  # a Llama's default
    (OWN, OWN, (OWN,)),
]


def end_tokens(folder: Path) -> tuple[int, ...]:
    return served_end_tokens(folder, read_config(folder)[0])[0]


def say(folder: Path, config: Any, generation: Any) -> None:
    edit_json(folder / "config.json", eos_token_id=config)
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.5} | ({} if generation is UNSAID else {"eos_token_id": generation}))
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("source"), layers=1)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a source that says something else than the folder does later."""
    source = write_small_llama(tmp_path_factory.mktemp("other"), layers=1)
    say(source, 9, 4)
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(source, folder)
    return folder


@pytest.mark.parametrize(("config", "generation", "expected"), CASES)
def test_a_folder_as_it_was_published(source: Path, config: Any, generation: Any, expected: tuple[int, ...]) -> None:
    say(source, config, generation)
    assert end_tokens(source) == expected


@pytest.mark.parametrize(("config", "generation", "expected"), CASES)
def test_a_converted_folder_is_read_when_it_is_served(
    converted: Path, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    say(converted, config, generation)
    assert end_tokens(converted) == expected


def test_a_folder_without_generation_config(source: Path, converted: Path) -> None:
    for folder in (source, converted):
        say(folder, 5, 7)
        (folder / "generation_config.json").unlink()
        assert end_tokens(folder) == (OWN, 5)


def test_a_converted_folder_without_config_json(converted: Path) -> None:
    say(converted, 5, 7)
    text = (converted / "config.json").read_text()
    (converted / "config.json").unlink()
    try:
        assert read_config(converted)[0].eos_token_ids == (7,)
        (converted / "generation_config.json").unlink()
        assert read_config(converted)[0].eos_token_ids == (4,), "what the source said"
    finally:
        (converted / "config.json").write_text(text)


@pytest.mark.parametrize("bad", ["</s>", [1, "x"], True])
def test_a_bad_id_is_refused_by_file_and_name(source: Path, converted: Path, bad: Any) -> None:
    for folder in (source, converted):
        say(folder, 5, bad)
        with pytest.raises(CheckpointError, match=r"eos_token_id in generation_config\.json is .*must be a token id"):
            read_config(folder)


def test_the_tokenizers_own_end_token(source: Path, tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path, layers=1)
    say(folder, 5, UNSAID)
    edit_json(folder / "tokenizer_config.json", eos_token="<pad>")
    assert end_tokens(folder) == (258, 5)
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    assert end_tokens(folder) == (5,)
    edit_json(folder / "tokenizer_config.json", eos_token="<pad>")
    edit_json(folder / "config.json", vocab_size=258)
    assert end_tokens(folder) == (5,), "the model cannot write it"
    edit_json(folder / "config.json", vocab_size=261)
    (folder / "tokenizer.json").write_text("{")
    found, notes = served_end_tokens(folder, read_config(folder)[0])
    assert found == (5,)
    assert len(notes) == 1
    assert "tokenizer" in notes[0]
    (folder / "tokenizer.json").unlink()
    assert served_end_tokens(folder, read_config(folder)[0]) == ((5,), ())


def test_the_engine_gets_them_and_says_what_is_passed_over(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxinfer.messages import EngineInfo

    def assemble(model: Any, *_: Any, **__: Any) -> Any:
        values = dict.fromkeys(EngineInfo._fields, 0) | {
            "notes": ("a",),
            "extra": {},
            "eos_token_ids": model.config.eos_token_ids,
        }
        return SimpleNamespace(info=EngineInfo(**values), run=lambda inbox, _post: inbox.get())

    monkeypatch.setattr("jaxinfer.runtime.engine_builder.assemble_engine", assemble)
    say(converted, 5, [7, 9])
    edit_json(converted / "generation_config.json", no_repeat_ngram_size=3, do_sample=False)
    engine = build_engine(converted, RuntimeConfig(compilation_cache_dir=None))
    assert engine.info.eos_token_ids == (OWN, 7, 9)
    for how, notes in (
        ("auto", ("a", "generation_config.json: without effect here: no_repeat_ngram_size = 3, do_sample = False")),
        ("none", ("a",)),
    ):
        with LLM(converted, generation_config=how, compilation_cache_dir=None) as llm:
            assert (llm.info.eos_token_ids, llm.info.notes) == ((OWN, 7, 9), notes)
