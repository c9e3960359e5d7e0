"""The training loop: packed windows, Muon and AdamW, a schedule over the share of the run that is done."""

from __future__ import annotations

import dataclasses
import functools
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
from demo_training.network import Network, NetworkConfig, mean_loss
from demo_training.tokenizer import TokenStream

_WARMUP_STEPS = 50
_DECAY_FROM = 0.4  # share of the run after which the learning rate falls to zero in a line
_EVALUATION_ROWS = 32


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How the network is trained. The run ends at `steps` or after `minutes`, whichever comes first.

    Most steps see rows of `window` tokens, which is cheaper than attention over the whole context; each `long_every`-th
    step sees rows as long as the context, so that all its positions are learned from the start.

    Raises:
        ValueError: neither bound given, or a window or batch that does not fit.
    """

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    batch_tokens: int = 2048
    window: int = 256
    long_every: int = 4
    loss_chunk: int = 1024
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
        if self.batch_tokens % self.window or self.batch_tokens % self.loss_chunk:
            raise ValueError(f"batch_tokens = {self.batch_tokens}: must be a multiple of window and loss_chunk")

    def share_done(self, step: int, seconds: float) -> float:
        """How much of the run is over, 0 to 1."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate_factor(self, step: int, share: float) -> float:
        """The learning rate's factor: a short warm-up, a plateau, then a line to zero."""
        decay = 1.0 if share < _DECAY_FROM else (1.0 - share) / (1.0 - _DECAY_FROM)
        return min(1.0, (step + 1) / _WARMUP_STEPS) * decay

    def row_length(self, step: int, context: int) -> int:
        """Tokens per row of a step."""
        return context if step % self.long_every == self.long_every - 1 else self.window


@dataclasses.dataclass(frozen=True)
class Report:
    """One step's numbers for whoever watches: losses in nats per token."""

    step: int
    share: float
    loss: float
    rate_factor: float
    tokens_per_second: float


def windows(stream: TokenStream, seed: int, step: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of consecutive tokens from random places: ids (rows, length + 1) int32, and which are learned, bool.

    A function of seed and step alone, so that a resumed run sees what it would have seen.

    Raises:
        ValueError: the stream is shorter than one row.
    """
    if len(stream.ids) < length + 1:
        raise ValueError(f"the corpus has {len(stream.ids)} tokens, one row needs {length + 1}")
    starts = np.random.default_rng((seed, step)).integers(0, len(stream.ids) - length, size=rows)
    places = starts[:, None] + np.arange(length + 1)
    return stream.ids[places].astype(np.int32), stream.learned[places]


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Muon for the matrices of the layers (Jordan, 2024), AdamW for the embedding and the norms.

    Muon's updates are scaled to the size of Adam's (Liu et al., 2025), so both rates are of one kind.
    """

    def matrices(params: Any) -> Any:
        def dimensions(path: Any, leaf: jax.Array) -> Any:
            is_matrix = leaf.ndim == 2 and "embedding" not in jax.tree_util.keystr(path)
            return optax.contrib.MuonDimensionNumbers() if is_matrix else None

        return jax.tree_util.tree_map_with_path(dimensions, params)

    rule = optax.contrib.muon(
        config.matrix_rate,
        weight_decay=0.05,
        adam_b2=0.98,
        adam_learning_rate=config.other_rate,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


class Trainer:
    """A network, its optimizer, and the compiled step.

    Raises:
        ValueError: the batch does not hold a whole number of rows as long as the context.
    """

    def __init__(self, network: NetworkConfig, config: TrainConfig) -> None:
        if config.batch_tokens % network.context:
            raise ValueError(f"batch_tokens = {config.batch_tokens}: must be a multiple of context = {network.context}")
        self.network_config, self.config = network, config
        self._optimizer = make_optimizer(config)

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
        self._evaluate = jax.jit(self._loss)

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

    def run(self, stream: TokenStream, path: Path, watch: Callable[[Report], None]) -> None:
        """Trains to the end of the run and leaves a checkpoint at the path.

        Args:
            stream: the training corpus.
            path: the checkpoint, written every `checkpoint_seconds` and at the end.
            watch: called after every step.
        """
        config, state = self.config, self.state
        last, saved = time.monotonic(), time.monotonic()
        while (share := config.share_done(state.step, state.seconds)) < 1.0:
            length = config.row_length(state.step, self.network_config.context)
            batch = windows(stream, config.seed, state.step, config.batch_tokens // length, length)
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

    def restore(self, path: Path) -> None:
        """Goes on from the checkpoint. Raises what `checkpoint.restore` raises."""
        self.state = checkpoint.restore(path, self.state, self.settings)

    def evaluate(self, stream: TokenStream) -> float:
        """Mean loss in nats per token over fixed windows of a held-out stream."""
        rows = self.config.batch_tokens // self.config.window
        batches = range(-(-_EVALUATION_ROWS // rows))
        draw = functools.partial(windows, stream, self.config.seed, rows=rows, length=self.config.window)
        losses = [float(self._evaluate(self.state.params, *draw(step=step))) for step in batches]
        return float(np.mean(losses))
