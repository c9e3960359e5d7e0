"""Command lines that were written for `vllm serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from jaxinfer.text import load_tokenizer
from serving.commands import serve
from serving.commands.access_options import access_config
from serving.commands.options import model_name, runtime_given, tokenizer_of
from serving.commands.parsing import ALIASES
from serving.commands.vllm_options import NO_EFFECT, length, notes_of, settle_model, size
from serving.server import TokenizerError
from tests.fakes import write_tokenizer

PAGE = (Path(__file__).resolve().parents[3] / "docs/http.md").read_text()
USER = [{"role": "user", "content": "hi"}]


def parsed(line: str) -> argparse.Namespace:
    arguments = serve.make_parser("jaxinfer").parse_args(line.split())
    settle_model(arguments)
    return arguments


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("-tp 2", "--tensor-parallel-size 2"),
        ("-tp 2 -ep", "--tensor-parallel-size 2 --enable-expert-parallel"),
        ("-q int8", "--quantization int8"),
        ("--max-model-len 128k", "--max-model-len 128000"),
        ("--max-model-len 1.5k --max-num-batched-tokens 2K", "--max-model-len 1500 --max-num-batched-tokens 2048"),
        ("--max_model_len 8K", "--max-model-len 8192"),
        ("--block-size 16 --num-gpu-blocks-override 100", "--page-size 16 --num-pages 100"),
        ("--device-memory-utilization 0.5", "--gpu-memory-utilization 0.5"),
        ("--generation-config vllm", "--generation-config none"),
        ("--shutdown-timeout 5", "--grace-seconds 5"),
        ("--ssl-certfile a --ssl-keyfile b", "--tls-cert a --tls-key b"),
        ("--timeout-keep-alive 5", "--http-keep-alive 5"),
        ("m --served-model-name a b", "m --served-model-name a --served-model-name b"),
        ("--served-model-name a m", "m --served-model-name a"),
        ("--api-key k m", "m --api-key k"),
    ],
)
def test_spellings_mean_the_same(line, same):
    found, wanted = ({**vars(parsed(each)), "listed": None} for each in (line, same))
    assert found == wanted
    assert line.split()[0] in PAGE or line.startswith("m ") or "_" in line


def test_every_alias_is_on_the_page():
    for name, ours in ALIASES.items():
        assert name in PAGE
        assert f"`{ours}" in PAGE or f"{ours}`" in PAGE
        assert ours in serve.make_parser("jaxinfer")._option_string_actions


def test_names_behind_two_dashes_are_values():
    with pytest.raises(SystemExit):
        serve.make_parser("jaxinfer").parse_args(["--", "-tp", "2"])


def test_auto_is_the_length_that_is_found():
    for text in ("auto", "-1"):
        assert runtime_given(parsed(f"--max-model-len {text}")) == {"max_model_len": None}
    assert length("1M") == 1 << 20
    for text in ("", "k", "1.5K", "1kk", "1 k", "0x10", "1e3", "ten"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number such as"):
            size(text)


def test_answers_say_the_first_name():
    arguments = parsed("some/model --served-model-name a b")
    assert (arguments.model, model_name(arguments, Path("x"))) == ("some/model", "a")
    assert model_name(parsed("some/model"), Path("x")) == "some/model"
    assert parsed("--served-model-name only").model is None


def test_keys_are_given_and_never_shown():
    arguments = parsed("m --api-key key1 key2 --api-key key3")
    config = access_config(arguments)
    assert config.given == ("key1", "key2", "key3")
    assert "key1" not in repr(config)


def test_a_template_of_a_file_or_as_a_text(tmp_path, capsys):
    folder = write_tokenizer(tmp_path)
    own = load_tokenizer(folder)
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[0].content }} from a file")
    for given, rendered in ((str(file), "hi from a file"), ("{{messages[0].content}}\\n!", "hi\n!")):
        arguments = parsed("m")
        arguments = serve.make_parser("jaxinfer").parse_args(["m", "--chat-template", given])
        found = tokenizer_of(folder, skip=False, chat_template=arguments.chat_template)
        assert found is not None
        assert found.render_chat(USER) == rendered
        assert found.chat_template == arguments.chat_template
        assert found.content_digest != own.content_digest
    assert load_tokenizer(folder).render_chat(USER) == own.render_chat(USER) != rendered
    with pytest.raises(TokenizerError, match="--chat-template: the chat template has an error in line 1"):
        tokenizer_of(folder, skip=False, chat_template="{% if %}")
    with pytest.raises(SystemExit):
        serve.make_parser("jaxinfer").parse_args(["--chat-template", str(tmp_path / "none.jinja")])
    assert "it must be a file, or a Jinja template (No such file" in capsys.readouterr().err


def test_what_has_no_effect_is_taken_named_and_on_the_page():
    arguments = parsed("m " + " ".join(NO_EFFECT) + " --enforce-eager")
    notes = notes_of(arguments.without_effect)
    assert notes == tuple(f"{name} has no effect: {why}" for name, why in NO_EFFECT.items())
    assert all(f"`{name}`" in PAGE for name in NO_EFFECT)
    assert parsed("m").without_effect == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--max-model-length 5", "did you mean --max-model-len?"),
        ("--tensor-paralel-size 2", "did you mean --tensor-parallel-size?"),
        ("--enable-auto-tool-choise", "did you mean --enable-auto-tool-choice?"),
        ("--port 8000", "--http-port is what vLLM calls --port"),
    ],
)
def test_what_was_meant(line, said, capsys):
    with pytest.raises(SystemExit):
        serve.main(line.split(), hub_cache=Path("/nonexistent"))
    assert said in capsys.readouterr().err
