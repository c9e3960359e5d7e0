"""The training loop: packed rows, Muon and AdamW, a schedule over the share of the run that is done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from demo_training import checkpoint
from demo_training.checkpoint import TrainState
from demo_training.muon import scale_by_muon
from demo_training.network import Network, NetworkConfig, mean_loss
from demo_training.rows import Corpus

_WARMUP_STEPS = 50
_DECAY_FROM = 0.4  # share of the run after which the learning rate falls to zero in a line


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How the network is trained. The run ends at `steps` or after `minutes`, whichever comes first.

    Most steps see short rows, which are cheaper than attention over the whole context; each `long_every`-th step sees
    rows as long as the context, so that all its positions are learned from the start.

    Raises:
        ValueError: neither bound given, or a batch that is not a multiple of loss_chunk.
    """

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    batch_tokens: int = 4096
    long_every: int = 4
    loss_chunk: int = 512
    matrix_rate: float = 5e-3
    other_rate: float = 5e-3
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("steps and minutes are both unset: give at least one")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps = {self.steps}: must be at least 1")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes = {self.minutes}: must be above 0")
        if self.batch_tokens % self.loss_chunk:
            raise ValueError(
                f"batch_tokens = {self.batch_tokens}: must be a multiple of loss_chunk = {self.loss_chunk}"
            )

    def share_done(self, step: int, seconds: float) -> float:
        """How much of the run is over, 0 to 1."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate_factor(self, step: int, share: float) -> float:
        """The learning rate's factor: a short warm-up, a plateau, then a line to zero."""
        decay = 1.0 if share < _DECAY_FROM else (1.0 - share) / (1.0 - _DECAY_FROM)
        return min(1.0, (step + 1) / _WARMUP_STEPS) * decay

    def batch(self, corpus: Corpus, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a step, ids and learned: a function of the step alone, so that a resumed run goes on as it would.

        Raises:
            ValueError: the batch does not hold a whole number of rows.
        """
        rounds, place = divmod(step, self.long_every)
        is_long = place == self.long_every - 1
        rows, index = (corpus.long, rounds) if is_long else (corpus.short, rounds * (self.long_every - 1) + place)
        length = rows.ids.shape[1] - 1
        if self.batch_tokens % length:
            raise ValueError(f"batch_tokens = {self.batch_tokens}: must be a multiple of the row length {length}")
        count = self.batch_tokens // length
        return rows.batch(index * count, count)


@dataclasses.dataclass(frozen=True)
class Report:
    """One step's numbers for whoever watches: losses in nats per token."""

    step: int
    share: float
    loss: float
    rate_factor: float
    tokens_per_second: float


def make_optimizer(config: TrainConfig, dtype: str) -> optax.GradientTransformation:
    """Muon for the matrices of the layers (Jordan, 2024), with products of `dtype`; Adam for the embedding and norms.

    Muon's updates are scaled to the size of Adam's (Liu et al., 2025), so both rates are of one kind.
    """

    def rules(params: Any) -> Any:
        def rule(path: Any, leaf: jax.Array) -> str:
            is_matrix = leaf.ndim == 2 and "embedding" not in jax.tree_util.keystr(path)
            return "muon" if is_matrix else "adam"

        return jax.tree_util.tree_map_with_path(rule, params)

    muon = optax.chain(
        scale_by_muon(np.dtype(dtype)),
        optax.add_decayed_weights(0.05),
        optax.scale_by_learning_rate(config.matrix_rate),
    )
    rule = optax.partition({"muon": muon, "adam": optax.adam(config.other_rate, b2=0.98, nesterov=True)}, rules)
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


class Trainer:
    """A network, its optimizer, and the compiled step."""

    def __init__(self, network: NetworkConfig, config: TrainConfig) -> None:
        self.network_config, self.config = network, config
        self._optimizer = make_optimizer(config, network.product_dtype)

        def new_network() -> Network:
            return Network(network, rngs=nnx.Rngs(config.seed))

        @jax.jit
        def first_state() -> tuple[Any, Any]:
            params = nnx.to_pure_dict(nnx.state(new_network()))
            return params, self._optimizer.init(params)

        self._graph = nnx.graphdef(nnx.eval_shape(new_network))
        params, optimizer = first_state()
        self.state = TrainState(params, optimizer, step=0, seconds=0.0)
        self._step = jax.jit(self._update, donate_argnums=(0, 1))

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be resumed; the bounds of the run may be moved."""
        bounds = ("steps", "minutes", "checkpoint_seconds")
        run = {name: value for name, value in dataclasses.asdict(self.config).items() if name not in bounds}
        return {**run, **dataclasses.asdict(self.network_config)}

    def _loss(self, params: Any, tokens: jax.Array, learned: jax.Array) -> jax.Array:
        return mean_loss(nnx.merge(self._graph, params), tokens, learned, chunk=self.config.loss_chunk)

    def _update(
        self, params: Any, optimizer: Any, tokens: jax.Array, learned: jax.Array, factor: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(self._loss)(params, tokens, learned)
        updates, optimizer = self._optimizer.update(gradients, optimizer, params)
        updates = jax.tree.map(lambda update: factor * update, updates)
        return optax.apply_updates(params, updates), optimizer, loss

    def run(self, corpus: Corpus, path: Path, watch: Callable[[Report], None]) -> None:
        """Trains to the end of the run and leaves a checkpoint at the path.

        Args:
            corpus: the training rows.
            path: the checkpoint, written every `checkpoint_seconds` and at the end.
            watch: called after every step.
        """
        config, state = self.config, self.state
        last, saved = time.monotonic(), time.monotonic()
        while (share := config.share_done(state.step, state.seconds)) < 1.0:
            batch = config.batch(corpus, state.step)
            factor = config.rate_factor(state.step, share)
            params, optimizer, loss = self._step(state.params, state.optimizer, *batch, np.float32(factor))
            loss_value = float(loss)
            now = time.monotonic()
            state = TrainState(params, optimizer, state.step + 1, state.seconds + now - last)
            # The donated arrays of the old state are gone: keep ours valid, whatever stops the loop.
            self.state = state
            watch(Report(state.step, share, loss_value, factor, config.batch_tokens / (now - last)))
            last = now
            if now - saved > config.checkpoint_seconds:
                checkpoint.save(path, state, self.settings)
                saved = now
        checkpoint.save(path, state, self.settings)

    def start_from(self, params: Any) -> None:
        """Begins with these parameters instead of drawn ones. Raises ValueError where their shapes are other ones."""
        shapes = [jax.tree.map(np.shape, tree) for tree in (params, self.state.params)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"parameters have the shapes {shapes[0]}; the network's are {shapes[1]}")
        self.state = dataclasses.replace(self.state, params=params)

    def restore(self, path: Path) -> None:
        """Goes on from the checkpoint. Raises what `checkpoint.restore` raises."""
        self.state = checkpoint.restore(path, self.state, self.settings)
