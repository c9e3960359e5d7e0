"""Runs plans: owns the weights, the KV pool, the slot state and one executable per bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.runtime.buckets import Bucket, make_ladder, pick_bucket
from jaxinfer.runtime.compile_counter import CompileCounter
from jaxinfer.runtime.executables import Compiler, Executable, ExecutableSource, Lower
from jaxinfer.runtime.inputs import AdmitInputs, SlotSizes, SlotState, StepOutput, TableInputs
from jaxinfer.runtime.kv_cache import Sizes, abstract_pool, make_pool
from jaxinfer.runtime.packing import Packer
from jaxinfer.runtime.sampling import MAX_BIAS, MAX_STOP_IDS, TokenScores
from jaxinfer.runtime.step import KVCache, StepSpec, admit_step, step
from jaxinfer.scheduling.step_plan import Scores, StepPlan, StepResult
from jaxinfer.sharding import replicated, tensor_size
from pallas_kernels.dispatch import select
from pallas_kernels.paged_attention import AttentionOptions
from pallas_kernels.paged_attention.api import OP, PagedAttentionCase
from pallas_kernels.paged_attention.layout import KVLayout

COMPILE_THREADS = 2  # tracing holds the GIL; XLA's own threads use the other cores
ADMIT_TOKENS = 512  # history tokens per admission call


@dataclass(frozen=True)
class Pending:
    """A dispatched step whose results are on their way to the host."""

    plan: StepPlan
    output: StepOutput
    logprobs: int  # alternatives that a sampling row asked for; -1: no row wants scores
    prompt_logprobs: int  # the same for prompts

    @property
    def ready(self) -> bool:
        return bool(self.output.tokens.is_ready())

    def result(self) -> StepResult:
        """Waits for the step and returns its results for the plan's rows."""
        count, tokens = len(self.plan.rows), np.asarray(self.output.tokens)
        return StepResult(
            tokens[:count].tolist(),
            _fetch(self.output.scores, count * tokens.shape[1], self.logprobs) if self.logprobs >= 0 else None,
            _fetch(self.output.prompt, self.plan.num_tokens, self.prompt_logprobs)
            if self.prompt_logprobs >= 0
            else None,
        )


def _fetch(scores: TokenScores, count: int, alternatives: int) -> Scores:
    """The first `count` entries on the host, with as many alternatives as somebody asked for."""
    logprobs, ranks = (np.asarray(array)[:count].tolist() for array in (scores.logprobs, scores.ranks))
    if not alternatives:  # the tables stay on the device
        return Scores(logprobs, ranks, [[]] * count, [[]] * count)
    tables = (scores.top_ids, scores.top_logprobs)
    top_ids, top_logprobs = (np.asarray(array)[:count, :alternatives].tolist() for array in tables)
    return Scores(logprobs, ranks, top_ids, top_logprobs)


class Runner:
    """Dispatches steps. `warm_up` compiles every bucket; after it nothing is compiled, and `compilations` proves it.

    Buffers that a step consumes (pool and slot state) are donated and replaced by its results, so steps run in the
    order of their dispatch.
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
    ) -> None:
        self.spec = spec
        self.sizes = sizes
        self.layout = layout
        self.ladder = make_ladder(
            sizes.max_num_batched_tokens,
            sizes.max_num_seqs,
            platform=spec.target.platform,
            batch_invariant=batch_invariant,
        )
        self.compile_seconds: list[tuple[str, float]] = []
        self.padded_tokens = 0  # computed for nothing, since buckets are coarser than plans
        self._vocab = vocab
        self._leaves = tuple(leaves)
        self._replicated = replicated(spec.mesh)
        groups = spec.config.cache_groups
        self._slot_sizes = SlotSizes.of(sizes.max_num_seqs, sizes.max_pages_per_sequence, sizes.page_size, groups)
        self._packer = Packer(self._slot_sizes, vocab, ADMIT_TOKENS)
        self._steps: dict[Bucket, Executable] = {}
        self._admit: Executable | None = None
        self._counter: CompileCounter | None = None
        # Virtual CPU devices share a thread pool as small as the core count: two steps with collectives in flight
        # starve each other and the process aborts after 40 s. One at a time cannot.
        self._blocks = spec.target.platform == "cpu" and spec.mesh.size > 1
        self._kv: KVCache = []
        self._slots: SlotState | None = None
        self._nobody: tuple[Any, TableInputs] | None = None  # an admission of nothing, on the device

    # -- compiling --------------------------------------------------------------------------------------------------

    def lower_step(self, bucket: Bucket, num_pages: int | None = None) -> jax.stages.Lowered:
        """Lowers the step for a bucket from shapes alone (a smaller pool may stand in: temporaries do not grow)."""
        sizes, here = self.sizes, self._replicated
        kv = abstract_pool(
            self.layout, self.spec.config.cache_groups.depth, num_pages or sizes.num_pages, self.spec.mesh
        )
        slots = self.abstract_slots()
        inputs = _abstract(self._packer.pack(StepPlan([]), bucket), here)
        leaves = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in self._leaves)
        shardings = (here, jax.tree.map(lambda s: s.sharding, kv), here)
        function = partial(step, self.spec, self._packer.layout(bucket))
        with jax.set_mesh(self.spec.mesh):
            jitted = jax.jit(function, donate_argnums=(1, 2), out_shardings=shardings)
            return jitted.lower(leaves, kv, slots, inputs)

    def _lower_admit(self) -> jax.stages.Lowered:
        inputs = _abstract(self._no_admission(), self._replicated)
        with jax.set_mesh(self.spec.mesh):
            function = partial(admit_step, self._slot_sizes)
            jitted = jax.jit(function, donate_argnums=(0,), out_shardings=self._replicated)
            return jitted.lower(self.abstract_slots(), *inputs)

    def _no_admission(self) -> tuple[np.ndarray, TableInputs]:
        """Arguments of the admission executable with which it fills nothing but the spare slot."""
        spare = self._packer.spare_slot
        tables = TableInputs(
            slot=np.int32(spare),
            token_ids=np.zeros(ADMIT_TOKENS, np.int32),
            count=np.int32(0),
            offset=np.int32(0),
            prompt_len=np.int32(0),
            clear=np.bool_(False),
            bias_ids=np.full(MAX_BIAS, self._vocab, np.int32),
            bias_values=np.zeros(MAX_BIAS, np.float32),
            allow_only=np.bool_(False),
            stop_ids=np.full(MAX_STOP_IDS, self._vocab, np.int32),
        )
        return self._packer.admission_rows([]), tables

    def abstract_slots(self) -> SlotState:
        """The slot state as shapes."""
        shapes = jax.eval_shape(partial(SlotState.zeros, self._slot_sizes, self._vocab))
        return _abstract(shapes, self._replicated)

    def programs(self) -> dict[str, Lower]:
        """Every program that `warm_up` asks a source for, by its name."""
        return {bucket.name: partial(self.lower_step, bucket) for bucket in self.ladder} | {"admit": self._lower_admit}

    def warm_up(
        self,
        progress: Callable[[int, int, str], None] | None = None,
        source: ExecutableSource | None = None,
    ) -> None:
        """Compiles the ladder and the admission, makes the pool, runs every executable once, then starts counting.

        progress(done, total, detail) is called after each executable. source: where executables come from; None
        compiles them.
        """
        source = source if source is not None else Compiler()
        jobs = self.programs()
        compiled: dict[str, Executable] = {}

        def build(name: str) -> tuple[str, Executable, float]:
            begin = time.perf_counter()
            executable = source.get(name, jobs[name])
            return name, executable, time.perf_counter() - begin

        with ThreadPoolExecutor(COMPILE_THREADS) as pool:
            for future in as_completed([pool.submit(build, name) for name in jobs]):
                name, executable, seconds = future.result()
                compiled[name] = executable
                self.compile_seconds.append((name, seconds))
                if progress is not None:
                    progress(len(compiled), len(jobs), f"{name} {seconds:.1f} s")
        self.compile_seconds.sort(key=lambda item: list(jobs).index(item[0]))
        self._steps = {bucket: compiled[bucket.name] for bucket in self.ladder}
        self._admit = compiled["admit"]
        self._make_state()
        for name, lower in jobs.items():  # the first call of an executable does one-time work
            try:
                self._run_once(name)
            except Exception as error:  # whatever a loaded executable fails with, a compiled one may do better
                self._take(name, source.replace(name, lower, error))
                self._make_state()  # the failed run may have consumed the old one
                self._run_once(name)
        self._counter = CompileCounter()

    def _take(self, name: str, executable: Executable) -> None:
        if name == "admit":
            self._admit = executable
        else:
            self._steps[next(bucket for bucket in self.ladder if bucket.name == name)] = executable

    def _run_once(self, name: str) -> None:
        """Runs an executable on nothing, to its end."""
        if name == "admit":
            self._run_admission(AdmitInputs(None, None))
            jax.block_until_ready(self._slots)
            return
        bucket = next(bucket for bucket in self.ladder if bucket.name == name)
        jax.block_until_ready(self._run(bucket, self._put(self._packer.pack(StepPlan([]), bucket))))

    def _make_state(self) -> None:
        with jax.set_mesh(self.spec.mesh):
            self._kv = make_pool(self.layout, self.spec.config.cache_groups.depth, self.sizes.num_pages, self.spec.mesh)
            make = jax.jit(partial(SlotState.zeros, self._slot_sizes, self._vocab), out_shardings=self._replicated)
            self._slots = make()
        self._nobody = self._put(self._no_admission())

    def attention_backends(self) -> str:
        """Names of the attention backends that the layers use, for people. Raises Unsupported as the step would."""
        config, tp, bucket = self.spec.config, tensor_size(self.spec.mesh), self.ladder[-1]
        names = set()
        for mixer in dict.fromkeys(layer.mixer for layer in config.layers):
            case = PagedAttentionCase(
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
            )
            names.add(select(OP, self.spec.target, case, self.spec.attention_backend).name)
        return ", ".join(sorted(names))

    @property
    def compilations(self) -> int:
        """Backend compilations since warm-up, anywhere in this process. Anything above 0 is a bug."""
        return 0 if self._counter is None else self._counter.count

    # -- running ----------------------------------------------------------------------------------------------------

    def dispatch(self, plan: StepPlan) -> Pending:
        """Starts a step and its copies to the host; does not wait. Raises ValueError outside the ladder."""
        bucket = pick_bucket(self.ladder, plan.num_tokens)
        self.padded_tokens += bucket.tokens - plan.num_tokens
        for inputs in self._packer.pack_admissions(plan):
            self._run_admission(inputs)
        output = self._run(bucket, self._put(self._packer.pack(plan, bucket)))
        logprobs, prompt_logprobs = self._packer.most_logprobs(plan)
        if self._blocks:
            jax.block_until_ready(output)
        else:
            output.tokens.copy_to_host_async()
        return Pending(plan, output, logprobs, prompt_logprobs)

    def _put(self, inputs: Any) -> Any:
        return jax.device_put(inputs, self._replicated)

    def _run(self, bucket: Bucket, inputs: jax.Array) -> StepOutput:
        output, self._kv, self._slots = self._steps[bucket](self._leaves, self._kv, self._slots, inputs)
        return output

    def _run_admission(self, inputs: AdmitInputs) -> None:
        assert self._admit is not None
        assert self._nobody is not None
        rows, tables = self._nobody
        rows = rows if inputs.rows is None else self._put(inputs.rows)
        tables = tables if inputs.tables is None else self._put(inputs.tables)
        self._slots = self._admit(self._slots, rows, tables)

    def close(self) -> None:
        """Stops counting and lets go of device memory."""
        if self._counter is not None:
            self._counter.close()
        self._kv, self._slots, self._leaves, self._steps = [], None, (), {}


def _abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding), tree)
