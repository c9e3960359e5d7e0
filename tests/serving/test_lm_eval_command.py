"""`python -m serving.lm_eval` before the harness starts: it need not be installed for these."""

from __future__ import annotations

import pytest

from serving.lm_eval import __main__ as command


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "jaxinfer", "--model_args", "pretrained=/nonexistent/model,dtype=float32", "--tasks", "x"],
        ["--model=jaxinfer", "--model_args=dtype=float32,model=/nonexistent/model"],
        ["run", "-M", "jaxinfer", "-a", "dtype=float32", "pretrained=/nonexistent/model"],
        ["run", "--model_args", '{"pretrained": "/nonexistent/model"}', "--model", "jaxinfer"],
    ],
)
def test_an_absent_model_is_named_before_the_harness_starts(arguments, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _name: object())
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(
        "python -m serving.lm_eval: error: MODEL is '/nonexistent/model'; there is no such folder"
    )


def test_models_of_others_and_the_demo_are_not_looked_for():
    command._check_model(["run", "--model", "hf", "--model_args", "pretrained=/nonexistent/model"])
    command._check_model(["run", "--model", "jaxinfer", "--model_args", "dtype=float32"])
    command._check_model(["ls", "tasks"])


def test_without_the_harness_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _name: None)
    assert command.main(["run"]) == 2
    assert "pip install 'jaxinfer[lm-eval]'" in capsys.readouterr().err
