"""Runs plans: owns the weights, the KV pool, the slot state and one executable per program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxinfer.runtime.allocator import give_back_free_memory
from jaxinfer.runtime.buckets import Bucket, buckets_of, drawing_rows, make_ladder, pick_bucket, pick_rows
from jaxinfer.runtime.compile_counter import CompileCounter
from jaxinfer.runtime.compiling import Compiling, Obtained
from jaxinfer.runtime.executables import Compiler, Executable, ExecutableSource, Lower
from jaxinfer.runtime.expert_counts import ExpertCounts
from jaxinfer.runtime.inputs import AdmitInputs, SlotState, StepOutput, TableInputs
from jaxinfer.runtime.kv_cache import Sizes, make_pool
from jaxinfer.runtime.packing import rows_that_draw
from jaxinfer.runtime.pending import Pending
from jaxinfer.runtime.programs import ADMIT, SCORE, Programs, draw_name
from jaxinfer.runtime.sampling import TokenScores
from jaxinfer.runtime.step import KVCache, StepSpec
from jaxinfer.scheduling.step_plan import StepPlan
from jaxinfer.sharding import model_size
from pallas_kernels.dispatch import select
from pallas_kernels.paged_attention import AttentionOptions
from pallas_kernels.paged_attention.api import OP, PagedAttentionCase
from pallas_kernels.paged_attention.layout import KVLayout
from pallas_kernels.paged_attention.xla_cost import cost_on_gpu


class Runner:
    """Dispatches steps. `warm_up` compiles every program; after it nothing is compiled, and `compilations` proves it.

    Or `begin` compiles what the smallest step needs; then the others are compiled while steps run, `adopt` takes those
    that are there, and `token_budget` says how large a step may be by now.

    Buffers that a step consumes (pool and slot state) are donated and replaced by its results, so steps run in the
    order of their dispatch.

    Args:
        step_sizes: tokens of the buckets, instead of a ladder.

    Attributes:
        expert_counts: how many tokens each expert has had; None in a model without experts.
    """

    def __init__(
        self,
        spec: StepSpec,
        leaves: Sequence[jax.Array],
        sizes: Sizes,
        layout: KVLayout,
        vocab: int,
        *,
        batch_invariant: bool,
        step_sizes: Sequence[int] | None = None,
    ) -> None:
        self.sizes = sizes
        self.layout = layout
        platform = spec.target.platform
        if step_sizes is None:
            self.ladder = make_ladder(
                sizes.max_num_batched_tokens, sizes.max_num_seqs, platform=platform, batch_invariant=batch_invariant
            )
        else:
            self.ladder = buckets_of(step_sizes, sizes.max_num_seqs, batch_invariant=batch_invariant)
        rows = drawing_rows(self.ladder[-1].rows, platform=platform, batch_invariant=batch_invariant)
        self.row_counts = rows if len(self.ladder) > 1 else rows[-1:]
        self.spec = replace(spec, max_rows=self.row_counts[-1])
        self.programs = Programs(self.spec, leaves, sizes, layout, vocab, self.ladder[-1].tokens)
        self.compile_seconds: list[tuple[str, float]] = []
        self.padded_tokens = 0  # computed for nothing, since buckets are coarser than plans
        self._leaves = tuple(leaves)
        self._packer = self.programs.packer
        self._executables: dict[str, Executable] = {}
        self._usable: tuple[Bucket, ...] = ()
        self._usable_rows: tuple[int, ...] = ()
        self._jobs: dict[str, Lower] = {}
        self._compiling: Compiling | None = None
        self._source: ExecutableSource = Compiler()
        self._counter: CompileCounter | None = None
        # Virtual CPU devices share a thread pool as small as the core count: two programs with collectives in flight
        # starve each other and the process aborts after 40 s. One at a time cannot.
        self._blocks = platform == "cpu" and spec.mesh.size > 1
        self._kv: KVCache = []
        self._slots: SlotState | None = None
        self._hidden: jax.Array | None = None
        self._nobody: tuple[Any, TableInputs] | None = None  # an admission of nothing, on the device
        self._any_token: dict[int, jax.Array] = {}  # masks that let everything through, by rows, on the device
        layers = self.spec.config.expert_layers
        self.expert_counts = ExpertCounts(layers, self._put) if layers else None

    # -- compiling --------------------------------------------------------------------------------------------------

    def lower_step(self, bucket: Bucket, num_pages: int | None = None) -> jax.stages.Lowered:
        """See `Programs.step`."""
        return self.programs.step(bucket, num_pages)

    def jobs(self) -> dict[str, Lower]:
        """How to lower each program, in order of need: what the smallest step needs, what the largest one needs besides
        (a prompt then is not cut into small pieces), and what saves padding."""
        programs, buckets, rows = self.programs, list(self.ladder), list(self.row_counts)
        found: dict[str, Lower] = {}
        for bucket, count in ((buckets[0], rows[0]), (buckets[-1], rows[-1])):
            found.setdefault(bucket.name, partial(programs.step, bucket))
            found.setdefault(draw_name(count), partial(programs.draw, count))
            found.setdefault(ADMIT, programs.admit)
            found.setdefault(SCORE, programs.score)
        found |= {b.name: partial(programs.step, b) for b in buckets if b.name not in found}
        return found | {draw_name(n): partial(programs.draw, n) for n in rows if draw_name(n) not in found}

    def warm_up(
        self,
        progress: Callable[[int, int, str], None] | None = None,
        source: ExecutableSource | None = None,
    ) -> None:
        """Obtains all programs, makes the pool, runs every executable once, then starts counting.

        progress(done, total, detail) is called after each executable. source: where executables come from; None
        compiles them.
        """
        self._start(source)
        try:
            while not self.whole:
                self._advance(progress)
        finally:
            self.stop()

    def begin(
        self,
        progress: Callable[[int, int, str], None] | None = None,
        source: ExecutableSource | None = None,
    ) -> None:
        """As `warm_up`, but returns when the smallest step can run; `adopt` then goes on."""
        self._start(source)
        try:
            while not self._usable:
                self._advance(progress)
        except BaseException:
            self.stop()
            raise

    def adopt(self) -> None:
        """Takes the programs that are ready by now, between two steps. Does not wait for others."""
        while self._compiling is not None and (found := self._compiling.take(wait=False)) is not None:
            self._settle(found)

    @property
    def whole(self) -> bool:
        """Whether all programs are there."""
        return bool(self._jobs) and len(self._executables) == len(self._jobs)

    @property
    def token_budget(self) -> int:
        """Tokens that a step may have by now."""
        return min(self._usable[-1].tokens if self._usable else 0, self.sizes.max_num_batched_tokens)

    def _start(self, source: ExecutableSource | None) -> None:
        self._jobs = self.jobs()
        self._source = self._source if source is None else source
        self._compiling = Compiling(self._jobs, self._source)
        self._make_state()

    def _advance(self, progress: Callable[[int, int, str], None] | None) -> None:
        assert self._compiling is not None
        found = self._compiling.take(wait=True)
        assert found is not None
        self._settle(found)
        if progress is not None:
            progress(len(self._executables), len(self._jobs), f"{found.name} {found.seconds:.1f} s")

    def _settle(self, found: Obtained) -> None:
        """Runs an executable once, since the first call does one-time work, and lets steps use it."""
        name, self._executables[found.name] = found.name, found.executable
        try:
            self._run_once(name)
        except Exception as error:  # whatever a loaded executable fails with, a compiled one may do better
            if self._usable:
                raise  # the failed run may have consumed what running sequences need
            self._executables[name] = self._source.replace(name, self._jobs[name], error)
            self._make_state()
            self._run_once(name)
        order = list(self._jobs)
        self.compile_seconds.append((name, found.seconds))
        self.compile_seconds.sort(key=lambda item: order.index(item[0]))
        self._usable_rows = tuple(n for n in self.row_counts if draw_name(n) in self._executables)
        most = max(self._usable_rows, default=0)
        if ADMIT in self._executables and SCORE in self._executables:
            self._usable = tuple(b for b in self.ladder if b.name in self._executables and b.rows <= most)
        if self.whole:
            give_back_free_memory()
            self._counter = CompileCounter()

    def _run_once(self, name: str) -> None:
        """Runs an executable on nothing, to its end."""
        if name == ADMIT:
            self._run_admission(AdmitInputs(None, None))
            jax.block_until_ready(self._slots)
        elif name == SCORE:
            jax.block_until_ready(self._score(np.zeros(1 + self.programs.tokens, np.int32)))
        elif rows := next((n for n in self.row_counts if draw_name(n) == name), None):
            nobody = np.zeros((2, self.spec.max_rows), np.int32)
            nobody[1] = self._packer.spare_slot
            jax.block_until_ready(self._draw(rows, self._put(nobody)))
        else:
            bucket = next(bucket for bucket in self.ladder if bucket.name == name)
            jax.block_until_ready(self._run(bucket, self._put(self._packer.nothing(bucket))))

    def _make_state(self) -> None:
        programs, depth, looped = self.programs, self.spec.config.cache_groups.depth, self.spec.looped
        with jax.set_mesh(self.spec.mesh):
            self._kv = make_pool(self.layout, depth, self.sizes.num_pages, self.spec.mesh, looped=looped)
            make = jax.jit(lambda: (programs.zero_slots(), programs.zero_hidden()), out_shardings=programs.here)
            self._slots, self._hidden = make()
        if self.expert_counts is not None:
            self.expert_counts.restart()
        self._nobody = self._put(programs.no_admission())
        for rows in self.row_counts:
            self._any_token[rows] = self._put(np.full((rows, programs.mask_words), 0xFFFFFFFF, np.uint32))

    def attention_backends(self) -> str:
        """Names of the attention backends that the layers use, for people. Raises Unsupported as the step would."""
        cases = dict.fromkeys(self._attention_cases())
        names = {select(OP, self.spec.target, case, self.spec.attention_backend).name for case in cases}
        return ", ".join(sorted(names))

    def attention_cost(self) -> str | None:
        """What the layers' attention costs where a kernel is missing, for people; None: nothing is to be said."""
        keys = self.sizes.max_model_len
        return cost_on_gpu(self.spec.target, self._attention_cases(), keys, self.spec.attention_backend)

    def _attention_cases(self) -> list[PagedAttentionCase]:
        """What the attention of each layer is told of the largest step."""
        tp, bucket = model_size(self.spec.mesh), self.ladder[-1]
        return [
            PagedAttentionCase(
                num_tokens=bucket.tokens,
                num_rows=bucket.rows,
                num_query_heads=mixer.num_heads // tp,
                num_kv_heads=self.layout.num_kv_heads // tp,
                head_dim=mixer.head_dim,
                page_size=self.layout.page_size,
                pages_per_row=self.sizes.max_pages_per_sequence,
                query_dtype=np.dtype(self.spec.dtype),
                kv_dtype=self.layout.dtype,
                options=AttentionOptions(mixer.scale, mixer.sliding_window, mixer.soft_cap),
                sinks=mixer.sinks,
            )
            for mixer in self.spec.config.attentions
        ]

    @property
    def compilations(self) -> int:
        """Backend compilations since all programs are there, anywhere in this process. Above 0 it is a bug."""
        return 0 if self._counter is None else self._counter.count

    # -- running ----------------------------------------------------------------------------------------------------

    def dispatch(self, plan: StepPlan) -> Pending:
        """Starts a step and its copies to the host; does not wait. Raises ValueError outside the ladder."""
        pending = self.dispatch_late(plan)
        pending.draw(None)
        return pending

    def dispatch_late(self, plan: StepPlan) -> Pending:
        """Starts a step's forward pass alone; `Pending.draw` then says what the rows that draw may draw."""
        bucket = pick_bucket(self._usable, plan.num_tokens)
        self.padded_tokens += bucket.tokens - plan.num_tokens
        for inputs in self._packer.pack_admissions(plan):
            self._run_admission(inputs)
        drawing = self._run(bucket, self._put(self._packer.pack(plan, bucket)))
        if self.expert_counts is not None:
            self.expert_counts.stepped()
        rows = rows_that_draw(plan)
        count = pick_rows(self._usable_rows, len(rows)) if rows else 0
        pending = Pending(plan, rows, drawing, None, None, *self._packer.most_logprobs(plan))
        pending.mask_shape = count, self.programs.mask_words
        pending.late = partial(self._follow, pending)
        return pending

    def _follow(self, pending: Pending, masks: np.ndarray | None) -> tuple[StepOutput | None, TokenScores | None]:
        """What follows a forward pass."""
        output = prompt = None
        if pending.drawing:
            output = self._draw(pending.mask_shape[0], pending.passed, None if masks is None else self._put(masks))
        if pending.prompt_logprobs >= 0:
            prompt = self._score(self._packer.pack_targets(pending.plan, self.programs.tokens))
        if output is not None and not self._blocks:
            output.tokens.copy_to_host_async()
        return output, prompt

    def _put(self, inputs: Any) -> Any:
        return jax.device_put(inputs, self.programs.here)

    def _call(self, name: str, *arguments: Any) -> Any:
        found = self._executables[name](*arguments)
        return jax.block_until_ready(found) if self._blocks else found

    def _run(self, bucket: Bucket, inputs: jax.Array) -> jax.Array:
        """A forward pass; what it says of the rows that draw."""
        counts = self.expert_counts
        expert_tokens = None if counts is None else counts.array
        drawing, self._kv, self._slots, self._hidden, expert_tokens = self._call(
            bucket.name, self._leaves, self._kv, self._slots, self._hidden, expert_tokens, inputs
        )
        if counts is not None:
            counts.array = expert_tokens
        return drawing

    def _draw(self, rows: int, drawing: jax.Array, masks: jax.Array | None = None) -> StepOutput:
        """The program for so many rows. masks: None for any token."""
        assert self._slots is not None
        slots = self._slots
        masks = self._any_token[rows] if masks is None else masks
        output, last_token = self._call(
            draw_name(rows), self._head(), self._hidden, drawing, slots.num_computed, slots.settings, slots.tables,
            slots.last_token, masks,
        )  # fmt: skip
        self._slots = replace(slots, last_token=last_token)
        return output

    def _score(self, targets: np.ndarray) -> TokenScores:
        scores: TokenScores = self._call(SCORE, self._head(), self._hidden, self._put(targets))
        return scores

    def _head(self) -> tuple[jax.Array, ...]:
        return tuple(self._leaves[index] for index in self.programs.head)

    def _run_admission(self, inputs: AdmitInputs) -> None:
        assert self._nobody is not None
        rows, tables = self._nobody
        rows = rows if inputs.rows is None else self._put(inputs.rows)
        tables = tables if inputs.tables is None else self._put(inputs.tables)
        self._slots = self._call(ADMIT, self._slots, rows, tables)

    # -- the end ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Compiles nothing more. Waits for what is being compiled."""
        if self._compiling is not None:
            self._compiling.stop()
            self._compiling = None

    def close(self) -> None:
        """Stops counting and lets go of device memory."""
        self.stop()
        if self._counter is not None:
            self._counter.close()
        self._kv, self._slots, self._hidden, self._leaves, self._executables = [], None, None, (), {}
        self._any_token = {}
        self._usable = ()
