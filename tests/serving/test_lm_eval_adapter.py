"""The installed lm-evaluation-harness drives the shipped demo on local task files, without a network.

Skipped where lm-eval is absent (the extra `lm-eval`). What the harness reports is compared with the same numbers taken
from `LLM.generate` directly.
"""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxinfer import LLM, SamplingParams
from jaxinfer.config import ConfigError
from jaxinfer.errors import ChatTemplateError, InvalidRequest
from jaxinfer.evaluation.loglikelihood import LoglikelihoodScorer, ScoringError, rolling_windows
from jaxinfer.model_path import demo_path

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'jaxinfer[lm-eval]')")

ROOT = Path(__file__).resolve().parents[2]
# Small, so that it compiles quickly. float32, so that numbers are equal whatever shares a step and however long it is.
SMALL: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 192, "num_pages": 64}
SMALL |= {"compilation_cache_dir": None, "dtype": "float32"}

QUESTIONS = [
    {"question": "The capital of the country is", "choices": ["a town", "the sea", "seven"], "answer": 1},
    {"question": "Once upon a time there was a", "choices": ["king", "of the and", "girl who lived"], "answer": 0},
    {"question": "One and two are", "choices": ["three", "12", "x"], "answer": 0},
    {"question": "The dog ran to the", "choices": ["house", "houses houses", "qqq"], "answer": 2},
]
CHOICE = {
    "task": "local_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
PROMPTS = [
    {"prompt": "Once upon a time", "target": "there was"},
    {"prompt": "What is 12 + 30?", "target": "42"},
    {"prompt": "The little girl", "target": "."},
]
GENERATE = {
    "task": "local_generate",
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["e", "</s>"], "max_gen_toks": 24, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
DOCUMENTS = [
    {"text": "Once upon a time there was a girl."},
    {"text": "The king had a very small house near the sea, and every day he went there. " * 12},
    {"text": "Hello"},
]
ROLLING = {
    "task": "local_rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
}
TASKS = [(CHOICE, QUESTIONS), (GENERATE, PROMPTS), (ROLLING, DOCUMENTS)]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(demo_path(), **SMALL) as model:
        yield model


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files in the harness's format, with their data beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    for task, rows in TASKS:
        data = folder / f"{task['task']}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            **task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "num_fewshot": 0,
        }
        (folder / f"{task['task']}.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network: the libraries are told, and a connection that they try all the same is an error."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"something connects to {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def evaluate(model: Any, names: list[str], folder: Path, **arguments: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True, **arguments
    )
    assert results is not None
    return results


def adapter(llm: LLM, **arguments: Any) -> Any:
    from serving.lm_eval.adapter import JaxinferLM

    return JaxinferLM(llm=llm, **arguments)


def direct(llm: LLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Straight from the engine, one request at a time."""
    output = llm.generate([[*context, *continuation]], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))[
        0
    ]
    assert output.prompt_logprobs is not None
    entries = [e for e in output.prompt_logprobs[len(context) :] if e is not None]
    assert [e.token_id for e in entries] == continuation
    return sum(e.logprob for e in entries), all(e.rank == 1 for e in entries)


def test_tasks_give_the_numbers_of_the_engine(llm: LLM, tasks: Path, offline: None) -> None:
    results = evaluate(adapter(llm), ["local_choice", "local_generate", "local_rolling"], tasks)
    tokenizer = llm.get_tokenizer()

    right = normed = 0
    for row in QUESTIONS:
        context = tokenizer.encode(row["question"])
        wholes = [tokenizer.encode(f"{row['question']} {choice}") for choice in row["choices"]]
        scores = [direct(llm, context, ids[len(context) :])[0] for ids in wholes]
        by_length = [s / len(c) for s, c in zip(scores, row["choices"], strict=True)]
        right += scores.index(max(scores)) == row["answer"]
        normed += by_length.index(max(by_length)) == row["answer"]
    choice = results["results"]["local_choice"]
    assert (choice["acc,none"], choice["acc_norm,none"]) == (right / 4, normed / 4)

    params = SamplingParams(temperature=0, max_tokens=24, stop=("e",))
    texts = [output.outputs[0].text for output in llm.generate([row["prompt"] for row in PROMPTS], params)]
    assert [s["resps"][0][0] for s in results["samples"]["local_generate"]] == texts
    assert any(texts)
    assert not any("e" in text for text in texts)

    bos = tokenizer.bos_token_id
    assert bos is not None
    total, size = 0.0, 0
    for row in DOCUMENTS:
        ids = tokenizer.encode(row["text"], add_special_tokens=False)
        total += sum(direct(llm, [*c], [*t])[0] for c, t in rolling_windows(ids, bos, SMALL["max_model_len"] - 2))
        size += len(row["text"].encode())
    assert len(tokenizer.encode(DOCUMENTS[1]["text"])) > SMALL["max_model_len"]
    rolling = results["results"]["local_rolling"]
    assert rolling["bits_per_byte,none"] == pytest.approx(-total / size / math.log(2), rel=1e-9)
    assert rolling["byte_perplexity,none"] == pytest.approx(math.exp(-total / size), rel=1e-9)
    assert results["config"]["model_dtype"] == "float32"


def test_the_chat_template_is_applied(llm: LLM, tasks: Path, offline: None) -> None:
    lm = adapter(llm)
    results = evaluate(lm, ["local_generate", "local_choice"], tasks, apply_chat_template=True)
    (prompt, _) = results["samples"]["local_generate"][0]["arguments"][0]
    message = [{"role": "user", "content": PROMPTS[0]["prompt"]}]
    tokenizer = llm.get_tokenizer()
    assert prompt == tokenizer.render_chat(message)
    assert lm.tok_encode(prompt) == tokenizer.encode_chat(message)  # one BOS, not two
    output = llm.generate([tokenizer.encode_chat(message)], SamplingParams(temperature=0, max_tokens=24, stop=("e",)))
    assert results["samples"]["local_generate"][0]["resps"][0][0] == output[0].outputs[0].text


def test_templates_by_name_and_continued_messages(llm: LLM) -> None:
    lm = adapter(llm)
    source = llm.get_tokenizer().chat_template
    assert lm.chat_template(True) == source
    assert lm.chat_template(False) is None
    assert lm.tokenizer_name.startswith("demo-")
    with pytest.raises(ChatTemplateError, match="chat template is 'other'; this model's templates have no names"):
        lm.chat_template("other")
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer is "}]
    text = lm.apply_chat_template(history, add_generation_prompt=False)
    assert text.endswith("The answer is")
    assert llm.get_tokenizer().render_chat(history, add_generation_prompt=False).startswith(text)


def test_pairs_are_split_as_the_harness_splits_them(llm: LLM) -> None:
    from lm_eval.api.model import TemplateLM

    lm = adapter(llm)
    for context, continuation in [
        ("The king", " went home"),
        ("The king ", "went home"),
        ("Question: 2 + 2 =\n", "4"),
        ("<s>The king", ", who"),
        ("un", "believable"),
    ]:
        own = lm.scorer.encode_pair(context, continuation)
        assert tuple(map(list, own)) == TemplateLM._encode_pair(lm, context, continuation)


@pytest.mark.parametrize("length", [1, 9, 10, 11, 35])
def test_windows_are_those_of_the_harness(length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens = list(range(10, 10 + length))
    theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, 1, max_seq_len=10, context_len=1))
    assert [tuple(map(list, pair)) for pair in rolling_windows(tokens, 1, 10)] == list(theirs)


def test_requests_keep_their_order_and_go_to_the_cache(llm: LLM, tasks: Path, offline: None, tmp_path: Path) -> None:
    names = ["local_choice", "local_generate", "local_rolling"]
    lm = adapter(llm)
    first = evaluate(lm, names, tasks, use_cache=str(tmp_path / "answers"))
    steps = llm.stats().steps
    again = evaluate(lm, names, tasks, use_cache=str(tmp_path / "answers"))
    assert llm.stats().steps == steps  # every answer came from the file
    for name in names:
        assert [s["resps"] for s in again["samples"][name]] == [s["resps"] for s in first["samples"][name]]


def test_long_contexts_are_cut_and_counted(llm: LLM) -> None:
    from lm_eval.api.instance import Instance

    lm = adapter(llm, max_length=64)
    long = "Once upon a time there was a girl who lived near the sea. " * 8
    instance = Instance("loglikelihood", {}, (long, " She"), 0)
    ((score, _),) = lm.loglikelihood([instance], disable_tqdm=True)
    context, continuation = lm.scorer.encode_pair(long, " She")
    kept = [*context, *continuation][-63:]
    assert score == direct(llm, kept[: -len(continuation)], list(continuation))[0]
    assert lm.truncated == 1
    request = Instance("generate_until", {}, (long, {"max_gen_toks": 20, "until": []}), 0)
    (text,) = lm.generate_until([request], disable_tqdm=True)
    ids = llm.get_tokenizer().encode(long)[-44:]
    assert text == llm.generate([ids], SamplingParams(temperature=0, max_tokens=20))[0].outputs[0].text
    assert lm.truncated == 2
    with pytest.raises(ScoringError, match="max_gen_toks is 64"):
        lm.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 64}), 0)])
    with pytest.raises(InvalidRequest, match="num_beams is 4"):
        lm.generate_until([Instance("generate_until", {}, ("a", {"num_beams": 4}), 0)])


def test_bad_model_arguments_are_named(llm: LLM) -> None:
    from serving.lm_eval.adapter import JaxinferLM

    for arguments, message in [
        ({"server": "localhost:1"}, "server is 'localhost:1'; a running server cannot be scored here"),
        ({"dtyp": "float32"}, "model argument 'dtyp' is unknown; how a model runs is said by dtype, quantization, "),
        ({"pretrained": "a", "model": "b"}, "pretrained is 'a' and model is 'b'"),
        ({"max_model_len": 100, "max_length": 200}, "max_model_len is 100 and max_length is 200"),
        ({"device": "cuda:1"}, "device is 'cuda:1'"),
        ({"device": "mps"}, "device is 'mps'; it must be cpu, gpu, tpu or None"),
        ({"pretrained": "no such folder"}, "MODEL is 'no such folder'"),
        ({"llm": llm, "dtype": "float32"}, "llm was given, an engine that runs already; dtype cannot be set"),
    ]:
        with pytest.raises(ConfigError, match=message):
            JaxinferLM(**arguments)


def test_is_registered_and_declared(llm: LLM) -> None:
    from lm_eval.api.registry import get_model

    from serving.lm_eval.adapter import JaxinferLM

    assert get_model("jaxinfer") is JaxinferLM
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["entry-points"]["lm_eval.models"]
    assert declared == {"jaxinfer": f"{JaxinferLM.__module__}:{JaxinferLM.__name__}"}


@pytest.mark.timeout(240)
def test_command_line(llm: LLM, tasks: Path, tmp_path: Path) -> None:
    """The documented command in a process of its own, on the demo, with the same numbers as here."""
    settings = {**SMALL, "max_num_batched_tokens": 8, "compilation_cache_dir": "none"}
    flags = ",".join(f"{name}={value}" for name, value in settings.items())
    command = [sys.executable, "-m", "serving.lm_eval", "run", "--model", "jaxinfer", "--model_args", flags]
    command += ["--tasks", str(tasks / "local_choice.yaml"), "--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **offline}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "local_choice" in done.stdout
    (file,) = (tmp_path / "out").rglob("samples_local_choice_*.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in file.read_text().splitlines()]
    pairs = [(row["question"], f" {choice}") for row in QUESTIONS for choice in row["choices"]]
    scores = LoglikelihoodScorer(llm, llm.get_tokenizer()).score(pairs)
    # The harness writes numbers as strings or as they are, depending on its version.
    logged = [(float(logprob), str(greedy) == "True") for each in answers for logprob, greedy in each]
    assert logged == [(score.logprob, score.is_greedy) for score in scores]
