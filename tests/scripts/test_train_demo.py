"""The demo model's training: its network, resumable loop, command and Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

pytestmark = pytest.mark.longer

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as `python scripts/train_demo.py` has it

import train_demo  # noqa: E402
from demo_training import checkpoint  # noqa: E402
from demo_training import tokenizer as demo_tokenizer  # noqa: E402
from demo_training.continued import params_of  # noqa: E402
from demo_training.network import Network, NetworkConfig, mean_loss, rotary_tables, rotate  # noqa: E402
from demo_training.rows import Corpus, Rows, make_corpus  # noqa: E402
from demo_training.training import Report, TrainConfig, Trainer  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

VOCAB = 1024
TINY = NetworkConfig(vocab_size=VOCAB, hidden=32, layers=1, heads=3, kv_heads=1, head_dim=16, mlp=48, context=256)
TINY_RUN = TrainConfig(steps=4, batch_tokens=256, loss_chunk=64, checkpoint_seconds=0.0)
FOLDER = {
    "config.json", "model.safetensors", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "generation_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    demo_tokenizer.train_tokenizer(path, seed=0, vocab_size=VOCAB)
    return path


@pytest.fixture(scope="module")
def corpus(tokenizer_file: Path) -> Corpus:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    return make_corpus(tokenizer, frozenset(), seed=0, tokens=8000, short=128, long=256)


# --- network


@nnx.jit
def _network() -> Network:
    return Network(TINY, rngs=nnx.Rngs(0))


def test_parameter_count_and_limits() -> None:
    state = nnx.state(nnx.eval_shape(lambda: Network(TINY, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == TINY.parameters
    sizes = {name: NetworkConfig(vocab_size=4096, **size).parameters for name, size in train_demo.SIZES.items()}
    assert 4e6 <= sizes["demo"] <= 12e6  # 24 MB in bfloat16
    assert 0.7e6 <= sizes["draft"] <= 1.3e6
    with pytest.raises(ValueError, match=r"heads = 3: must be a multiple of kv_heads = 2"):
        dataclasses.replace(TINY, kv_heads=2)
    with pytest.raises(ValueError, match=r"layers = 0"):
        dataclasses.replace(TINY, layers=0)


def test_no_position_sees_a_later_token() -> None:
    # 200 tokens: more than one block of queries.
    network = _network()
    tokens = np.random.default_rng(0).integers(0, VOCAB, (1, 200))
    changed = tokens.copy()
    changed[0, 150] = (changed[0, 150] + 1) % VOCAB
    forward = nnx.jit(lambda network, tokens: network(tokens))
    before, after = np.asarray(forward(network, tokens)), np.asarray(forward(network, changed))
    np.testing.assert_array_equal(before[:, :150], after[:, :150])
    # the changed token itself, and the next one, whose first head looks one token back
    assert np.abs(before[:, 150:152] - after[:, 150:152]).max(axis=-1).min() > 0


def test_the_first_heads_start_by_looking_back() -> None:
    # As the model is built by default, and without the later layers.
    config = dataclasses.replace(NetworkConfig(), layers=1)
    network = nnx.jit(lambda: Network(config, rngs=nnx.Rngs(0)))()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 40))
    attention, size = network.layers[0].attention, config.head_dim
    x = network.layers[0].attention_norm(network.embedding[...][tokens])
    cos, sin = rotary_tables(40, size, config.rope_theta)
    k = rotate((x @ attention.k[...]).reshape(1, 40, -1, size), cos, sin)[0, :, 0]
    q = rotate((x @ attention.q[...]).reshape(1, 40, -1, size), cos, sin)[0]
    for head in range(config.heads // config.kv_heads):
        scores = np.where(np.tri(40), np.asarray(q[:, head] @ k.T) * size**-0.5, -np.inf)
        expected = np.arange(5, 40) - (head + 1)
        assert (scores[5:].argmax(axis=-1) == expected).mean() > 0.9


def test_chunked_loss_is_the_loss() -> None:
    network = _network()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 65)))

    learned = np.random.default_rng(1).random((2, 65)) < 0.5

    @nnx.jit
    def whole_and_chunked(network: Network, tokens: Array) -> tuple[Array, Array]:
        logits = network(tokens[:, :-1]) @ network.embedding[...].T
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
        return losses, mean_loss(network, tokens, jnp.asarray(learned), chunk=32)

    losses, chunked = whole_and_chunked(network, tokens)
    # float32 sums in another order: a few units in the last place of a loss near 7
    np.testing.assert_allclose(chunked, np.asarray(losses)[learned[:, 1:]].mean(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"chunk = 48"):
        mean_loss(network, tokens, jnp.asarray(learned), chunk=48)


# --- training


def _ignore(report: Report) -> None:
    del report


class Fresh:
    """One trainer, compiled once, put back to its first state for each test."""

    def __init__(self) -> None:
        self._trainer = Trainer(TINY, TINY_RUN)
        self._first = jax.tree.map(np.asarray, (self._trainer.state.params, self._trainer.state.optimizer))

    def __call__(self, **changes: Any) -> Trainer:
        self._trainer.config = dataclasses.replace(TINY_RUN, **changes)
        params, optimizer = jax.tree.map(jnp.array, self._first)  # copies: the step donates its arguments
        self._trainer.state = checkpoint.TrainState(params, optimizer, step=0, seconds=0.0)
        return self._trainer


@pytest.fixture(scope="module")
def fresh() -> Fresh:
    return Fresh()


def _leaves(trainer: Trainer) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves((trainer.state.params, trainer.state.optimizer))]


def test_an_interrupted_run_resumes_to_the_same_bits(fresh: Fresh, corpus: Corpus, tmp_path: Path) -> None:
    reports: list[Report] = []
    trainer = fresh()
    untrained = _leaves(trainer)
    trainer.run(corpus, tmp_path / "whole.npz", reports.append)
    assert [report.step for report in reports] == [1, 2, 3, 4]
    whole = _leaves(trainer)
    assert any((before != after).any() for before, after in zip(untrained, whole, strict=True))

    def stop(report: Report) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fresh().run(corpus, tmp_path / "broken.npz", stop)
    resumed = fresh()
    resumed.restore(tmp_path / "broken.npz")
    assert resumed.state.step == 2
    resumed.run(corpus, tmp_path / "broken.npz", _ignore)
    assert resumed.state.step == 4
    for ours, theirs in zip(_leaves(resumed), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_training_lowers_the_loss(fresh: Fresh, corpus: Corpus, tmp_path: Path) -> None:
    losses: list[float] = []
    fresh(steps=60, checkpoint_seconds=1e9).run(
        corpus, tmp_path / "state.npz", lambda report: losses.append(report.loss)
    )
    assert losses[0] == pytest.approx(np.log(VOCAB), rel=0.05)  # an untrained network guesses
    assert np.mean(losses[-8:]) < losses[0] - 0.5


def test_restore_refuses_what_does_not_fit(fresh: Fresh, tmp_path: Path) -> None:
    trainer, path = fresh(), tmp_path / "state.npz"
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        trainer.restore(path)
    checkpoint.save(path, trainer.state, trainer.settings)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    fresh(steps=9).restore(path)  # the bounds of a run may be moved
    with pytest.raises(ValueError, match=r"trained with seed = 0, this run asks for seed = 1"):
        fresh(seed=1).restore(path)
    state = fresh().state
    wider = dataclasses.replace(state, params={**state.params, "embedding": jnp.zeros((VOCAB, 48))})
    with pytest.raises(ValueError, match=r"'embedding'\] is float32\(1024, 32\), expected float32\(1024, 48\)"):
        checkpoint.restore(path, wider, trainer.settings)
    fewer = dataclasses.replace(state, params={"embedding": state.params["embedding"]})
    with pytest.raises(ValueError, match=r"missing or left over: .*'norm'"):
        checkpoint.restore(path, fewer, trainer.settings)


def test_steps_take_every_row_in_turn() -> None:
    def numbered(rows: int, length: int) -> Rows:
        ids = np.repeat(np.arange(rows, dtype=np.uint16)[:, None], length + 1, axis=1)
        return Rows(ids, ids % 2 == 0)

    corpus, run = Corpus(numbered(8, 4), numbered(3, 8)), TrainConfig(steps=1, batch_tokens=8, loss_chunk=8)
    seen = [run.batch(corpus, step)[0][:, 0].tolist() for step in range(9)]
    assert seen == [[0, 1], [2, 3], [4, 5], [0], [6, 7], [0, 1], [2, 3], [1], [4, 5]]
    with pytest.raises(ValueError, match="batch_tokens = 8: must be a multiple of the row length 5"):
        run.batch(Corpus(numbered(8, 5), numbered(3, 8)), 0)
    with pytest.raises(ValueError, match="learned has shape"):
        Rows(np.zeros((2, 3), np.uint16), np.zeros((2, 4), np.bool_))


def test_bounds_and_schedule() -> None:
    run = TrainConfig(steps=100, minutes=1.0)
    assert run.share_done(50, 6.0) == 0.5
    assert run.share_done(10, 30.0) == 0.5
    assert run.share_done(10, 90.0) == 1.0
    factors = [run.rate_factor(1000, share) for share in (0.0, 0.4, 0.7, 1.0)]
    np.testing.assert_allclose(factors, [1.0, 1.0, 0.5, 0.0], atol=1e-12)
    assert run.rate_factor(0, 0.0) < 0.05
    for bad, text in (
        ({}, "both unset"),
        ({"steps": 0}, "steps = 0"),
        ({"minutes": float("nan")}, "minutes = nan"),
        ({"steps": 1, "batch_tokens": 100, "loss_chunk": 64}, "multiple of loss_chunk = 64"),
    ):
        with pytest.raises(ValueError, match=text):
            TrainConfig(**bad)


# --- the folder


def _numpy_llama(tensors: dict[str, np.ndarray], config: dict[str, Any], ids: list[int]) -> np.ndarray:
    """Logits (T, V) from Hugging Face's names and config alone, one token and one head at a time, float64."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    size, group = config["head_dim"], config["num_attention_heads"] // config["num_key_value_heads"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * w[name]

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        out = x.copy()
        for i in range(size // 2):
            angle = position * config["rope_theta"] ** (-2 * i / size)
            a, b = x[i], x[i + size // 2]
            out[i], out[i + size // 2] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
        return out

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = norm(x, p + "input_layernorm.weight")
        q, k, v = (
            (h @ w[f"{p}self_attn.{n}_proj.weight"].T).reshape(len(ids), -1, size).transpose(1, 0, 2) for n in "qkv"
        )
        heads = []
        for head in range(config["num_attention_heads"]):
            kv = head // group
            keys = np.stack([turn(k[kv, t], t) for t in range(len(ids))])
            rows = []
            for t in range(len(ids)):
                scores = keys[: t + 1] @ turn(q[head, t], t) / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                rows.append(weights / weights.sum() @ v[kv, : t + 1])
            heads.append(np.stack(rows))
        x = x + np.concatenate(heads, axis=-1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, p + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{p}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["model.embed_tokens.weight"].T


def test_the_command_trains_resumes_and_writes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    sizes = "--hidden 32 --layers 1 --mlp 48 --heads 2 --kv-heads 1 --vocab-size 1024 --context 256 --window 128"
    command = ["--out", str(out), *sizes.split(), "--batch-tokens", "256", "--corpus-tokens", "5000"]
    assert train_demo.main([*command, "--resume", "--steps", "2"]) == 2
    assert not out.exists()
    assert train_demo.main([*command, "--steps", "2"]) == 0
    first = load_file(out / "model.safetensors")
    (out / "config.json").unlink()
    assert train_demo.main([*command, "--steps", "2", "--resume"]) == 0  # nothing left to train: writes the folder
    assert "resumed at step 2" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == FOLDER
    tensors = load_file(out / "model.safetensors")
    assert len(tensors) == 2 + 9
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, first[name])
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["torch_dtype"] == "bfloat16"
    tokenizer = demo_tokenizer.load_tokenizer(out / "tokenizer.model")
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_id(), tokenizer.piece_to_id("<|end|>")]
    added = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {content["content"]: int(index) for index, content in added.items()} == {
        piece: tokenizer.piece_to_id(piece)
        for piece in ("<unk>", "<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    }

    stored = tmp_path / "stored"
    assert train_demo.main([*command, "--steps", "2", "--resume", "--checkpoint", str(stored)]) == 0
    network = NetworkConfig(
        vocab_size=1024, hidden=32, layers=1, heads=2, kv_heads=1, mlp=48, context=256, product_dtype="bfloat16"
    )
    run = TrainConfig(steps=2, batch_tokens=256, loss_chunk=256)
    trainer = Trainer(network, run)
    trainer.restore(tmp_path / "demo.work" / "state.npz")
    # The trained float32 parameters, rounded as the file is, through the training network.
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), trainer.state.params)
    ids = [1, *tokenizer.encode("Once upon a time, there was a fox.")]
    again = params_of(stored, network)
    jax.tree.map(np.testing.assert_array_equal, again, rounded)
    trainer.start_from(again)
    with pytest.raises(ValueError, match="has other sizes than the network"):
        params_of(stored, dataclasses.replace(network, mlp=64))
    with pytest.raises(ValueError, match="parameters have the shapes"):
        trainer.start_from({**again, "embedding": again["embedding"][:8]})
    exact = dataclasses.replace(network, product_dtype="float32")
    graph = nnx.graphdef(nnx.eval_shape(lambda: Network(exact, rngs=nnx.Rngs(0))))
    forward = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids)[0] @ params["embedding"].T)
    ours = forward(rounded, jnp.asarray([ids]))
    theirs = _numpy_llama(tensors, config, ids)
    # float32 against float64 over one layer: 1e-5 of the largest logit leaves room for a hundred roundings
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seed", "-1"], "--seed -1: must not be negative"),
        (["--rate", "0"], "--rate 0.0: must be above 0 and below 1"),
        (["--start-from", "no"], "--start-from no: no such folder"),
        (["--corpus-tokens", "0"], "--corpus-tokens 0: must be at least 1"),
        (["--tokenizer", "no.model"], "--tokenizer no.model: no such file"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train_demo.main(["--out", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err
