"""The offline API, as users of vLLM expect it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxinfer import LLM, SamplingParams, StructuredOutputsParams
from jaxinfer.config import ConfigError
from jaxinfer.errors import InvalidRequest
from jaxinfer.expert_load import ExpertLoad
from jaxinfer.llm import EngineDead
from jaxinfer.outputs import RequestOutput
from tests.golden_recipe import load_case, write_checkpoint
from tests.jaxinfer.harness import SIZES

TOKENIZER = Path(__file__).parent.parent / "goldens_text" / "vocabularies" / "sp_bpe.model"
SETTINGS = {"page_size": 16, "max_num_seqs": 4, "max_num_batched_tokens": 16, "num_pages": 64, "dtype": "float32"}
CASE = load_case("llama")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_checkpoint(CASE, tmp_path_factory.mktemp("model"))
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "top_k": 7, "max_new_tokens": 5}')
    with LLM(folder, compilation_cache_dir=None, max_model_len=160, **SETTINGS) as model:
        yield model


GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)


def test_prompt_forms(llm: LLM) -> None:
    ids = list(CASE.prompts[0])
    single = llm.generate(ids, GREEDY)
    assert len(single) == 1
    assert single[0].prompt_token_ids == ids
    assert single[0].outputs[0].token_ids == list(CASE.greedy[0][:12])
    assert single[0].outputs[0].finish_reason == "length"
    assert len(single[0].outputs[0].logprobs or []) == 12
    many = llm.generate([ids, {"prompt_token_ids": list(CASE.prompts[1])}], [GREEDY, GREEDY])
    assert [o.outputs[0].token_ids for o in many] == [list(g[:12]) for g in CASE.greedy[:2]]
    assert all(o.finished for o in many)


def test_defaults_come_from_the_generation_config(llm: LLM) -> None:
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.25, top_k=7, max_tokens=5)
    assert len(llm.generate([[1, 2, 3]])[0].outputs[0].token_ids) <= 5


def test_min_tokens_must_fit_the_context(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="min_tokens is 158; with a prompt of 3 tokens at most 157 fit"):
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=None, min_tokens=158))


def test_results_are_told_as_they_finish(llm: LLM) -> None:
    params = [GREEDY.with_changes(max_tokens=count) for count in (12, 2, 6)]
    told: list[RequestOutput] = []
    results = llm.generate([[1, 2], [3, 4], [5, 6]], params, on_finish=told.append)
    assert [id(output) for output in told] == [id(results[i]) for i in (1, 2, 0)]
    assert all(output.finished for output in told)


def test_forms_need_a_tokenizer(llm: LLM) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="[ab]"))
    with pytest.raises(InvalidRequest, match=r"^structured_outputs is 'regex'; it needs a tokenizer"):
        llm.generate([[1]], params)


def test_seeded_runs_repeat(llm: LLM) -> None:
    params = SamplingParams(seed=11, n=3, max_tokens=10, ignore_eos=True)
    first, second = (llm.generate([[4, 5, 6]], params)[0] for _ in range(2))
    assert [o.token_ids for o in first.outputs] == [o.token_ids for o in second.outputs]
    assert len({tuple(o.token_ids) for o in first.outputs}) == 3


def test_a_seed_of_minus_one_is_drawn(llm: LLM) -> None:
    """As in vLLM 0.32, SamplingParams.__post_init__."""
    params = SamplingParams(temperature=5.0, max_tokens=8, seed=-1, ignore_eos=True)
    ids = [list(CASE.prompts[0])] * 4
    assert len({tuple(result.outputs[0].token_ids) for result in llm.generate(ids, params)}) > 1


def test_output_ends_where_the_pool_does(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over the servers."""
    monkeypatch.setattr(llm, "info", llm.info._replace(num_pages=5))
    for max_tokens in (None, 100):
        stream = llm._stream([1, 2, 3], SamplingParams(max_tokens=max_tokens))
        assert stream.params.max_tokens == 4 * 16 + 1 - 3
    stream = llm._stream([1, 2, 3], SamplingParams(max_tokens=100, min_tokens=90))
    assert stream.params.max_tokens == 100, "out of reach: the engine refuses it"
    # Two page tables halve what it holds; what windows give back does not end an output.
    monkeypatch.setattr(llm, "info", llm.info._replace(num_pages=9, num_page_tables=2))
    assert (llm.info.kv_tokens, llm._stream([1, 2, 3], SamplingParams(max_tokens=None)).params.max_tokens) == (64, 62)
    monkeypatch.setattr(llm, "info", llm.info._replace(window_tokens=160))
    assert (llm.info.kv_tokens, llm._stream([1, 2, 3], SamplingParams(max_tokens=None)).params.max_tokens) == (64, 157)


def test_output_ends_at_the_context(llm: LLM) -> None:
    output = llm.generate([[3] * 150], SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True))[0].outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (10, "length")


def test_prompt_logprobs(llm: LLM) -> None:
    output = llm.generate([[1, 2, 3, 4]], GREEDY.with_changes(prompt_logprobs=2))[0]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [e.token_id for e in output.prompt_logprobs[1:] if e is not None] == [2, 3, 4]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "prompt"),
        ([[1, 10_000]], GREEDY, "prompt_token_ids is 10000; token ids are integers from 0 to"),
        ([[1] * 160], GREEDY, "at most 159 fit the context"),
        ([{"text": "hello"}], GREEDY, "a mapping holds either prompt or prompt_token_ids"),
        ([[1]], SamplingParams(stop=["x"]), "stop strings need a tokenizer"),
        ([[1]], SamplingParams(bad_token_ids=(10_000,)), "bad_token_ids is 10000"),
        ([[1], [2]], [GREEDY], "there are 2 prompts"),
    ],
)
def test_bad_input_names_the_field(llm: LLM, prompt: list[object], params: object, message: str) -> None:
    if prompt == []:
        assert llm.generate(prompt, params) == []  # type: ignore[arg-type]
        return
    with pytest.raises(InvalidRequest, match=message):
        llm.generate(prompt, params)  # type: ignore[arg-type]


def test_text_needs_a_tokenizer(llm: LLM) -> None:
    with pytest.raises(ValueError, match="has no tokenizer"):
        llm.generate(["hello"], GREEDY)


def test_engine_failure_is_raised_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxinfer.runtime.runner import Runner

    folder = write_checkpoint(CASE, tmp_path / "model")
    with LLM(folder, **SIZES) as broken:
        monkeypatch.setattr(Runner, "dispatch", lambda self, plan: 1 // 0)
        for _ in range(2):
            with pytest.raises(EngineDead, match="ZeroDivisionError"):
                broken.generate([[1]], GREEDY)
    broken.close()


def test_closed_model_says_so(tmp_path: Path) -> None:
    folder = write_checkpoint(CASE, tmp_path / "model")
    model = LLM(folder, **SIZES)
    model.close()
    with pytest.raises(EngineDead, match="was closed"):
        model.generate([[1]], GREEDY)


def test_text_stop_strings_and_forms(tmp_path: Path) -> None:
    """A random model speaks gibberish, so the stop string is cut from what it says without one."""
    folder = write_checkpoint(CASE, tmp_path / "model")
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{# <think> ... </think> #}")
    with LLM(folder, **SIZES) as model:
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        prompt = list(CASE.prompts[1])
        whole = model.generate(prompt, params)[0].outputs[0]
        assert whole.text.strip()
        middle = len(whole.text) // 2
        stop = whole.text[middle : middle + 3]
        cut = model.generate(prompt, params.with_changes(stop=(stop,)))[0].outputs[0]
        assert (cut.text, cut.finish_reason, cut.stop_reason) == (whole.text[: whole.text.index(stop)], "stop", stop)
        assert len(cut.token_ids) < 24
        kept = model.generate(prompt, params.with_changes(stop=(stop,), include_stop_str_in_output=True))[0].outputs[0]
        assert kept.text == cut.text + stop
        _check_forms(model)
        _check_budgets(model, params)


def _check_forms(model: LLM) -> None:
    params = SamplingParams(
        max_tokens=40, temperature=1.5, structured_outputs=StructuredOutputsParams(regex="[ab]{3}-7")
    )
    for result in model.generate(["x", "y"], params):
        assert re.fullmatch("[ab]{3}-7", result.outputs[0].text)
        assert result.outputs[0].finish_reason == "stop"
    other = next(i for i in range(9, 130) if model.get_tokenizer().decode([i]) not in ("a", "b"))
    letters = params.with_changes(allowed_token_ids=(other,))
    with pytest.raises(InvalidRequest, match=r"^prompts\[1\] is 'y'; no token can be chosen: .*allowed_token_ids"):
        model.generate(["x", "y"], [params, letters])
    with pytest.raises(InvalidRequest, match=r"^structured_outputs\.json#/uniqueItems is True"):
        model.generate("x", SamplingParams(structured_outputs=StructuredOutputsParams(json={"uniqueItems": True})))


def _check_budgets(model: LLM, params: SamplingParams) -> None:
    """In the format that the chat template shows; by tokens, since this model's are no whole characters."""
    decoded = model.get_tokenizer().decode
    free = model.generate("x<think>", params)[0].outputs[0].token_ids
    for tokens in (0, 3):
        led = model.generate("x<think>", params.with_changes(thinking_token_budget=tokens))[0].outputs[0].token_ids
        assert led[:tokens] == free[:tokens]
        assert decoded([*model.get_tokenizer().encode("a"), *led[tokens:]]).startswith("a</think>")
    plain, led_too = (model.generate("x", each)[0] for each in (params, params.with_changes(thinking_token_budget=3)))
    assert led_too.outputs[0].token_ids == plain.outputs[0].token_ids, "it does not reason"


def test_unknown_models_and_settings() -> None:
    with pytest.raises(ConfigError, match="hf download org/absent"):
        LLM("org/absent")
    with pytest.raises(ConfigError, match="MODEL is 'no such folder'"):
        LLM("no such folder")
    with pytest.raises(TypeError, match="unknown_setting"):
        LLM(unknown_setting=1)


def test_importing_jaxinfer_does_not_import_jax() -> None:
    script = "import sys, jaxinfer; jaxinfer.SamplingParams(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


@pytest.mark.longer
def test_experts_tell_what_they_computed(tmp_path: Path, llm: LLM) -> None:
    case = load_case("qwen3_moe")
    folder = write_checkpoint(case, tmp_path)
    with LLM(folder, compilation_cache_dir=None, max_model_len=160, **SETTINGS) as model:
        assert model.expert_load() == ExpertLoad.zeros(model.info.expert_layers)
        totals = []
        for prompt in case.prompts[:2]:
            before = model.expert_load()
            model.generate(list(prompt), GREEDY)
            totals.append(model.expert_load().since(before).total)
        each = case.config["num_experts_per_tok"] * len(model.info.expert_layers)
        assert totals == [each * (len(prompt) + 12 - 1) for prompt in case.prompts[:2]]
    with pytest.raises(EngineDead, match="this LLM was closed"):
        model.expert_load()
    assert llm.expert_load() == ExpertLoad()
