"""The whole engine on a model of the Llama-3-8B shape with random weights: scheduler, pages, sampling, compiled steps.

Start-up, then compiled steps alone, then requests. A compiled step is called with inputs that lie on the device
already, several times in a row without waiting, which is what the device needs for it. In the engine the time between
the results of two decode steps with all rows is taken; what it is longer is the host's. No prefix is shared, sampling
is greedy, and no text ends early.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from device_checks.child import Case
from device_checks.engine_sizes import EngineSizes, LeastWork, engine_sizes
from device_checks.product_cases import PLAIN
from device_checks.random_model import random_model
from device_checks.settings import Settings
from device_checks.step_trace import traced_steps
from device_checks.timing import REPEATS, summarise
from jaxinfer.config import ParallelConfig, Quantization, RuntimeConfig
from jaxinfer.engine import EngineLoop
from jaxinfer.messages import Submit
from jaxinfer.models.model import Model
from jaxinfer.models.registry import model_config
from jaxinfer.models.shape import valid_tp
from jaxinfer.runtime.buckets import Bucket, pick_bucket, pick_rows
from jaxinfer.runtime.engine_builder import engine_info, make_layout, make_runner
from jaxinfer.runtime.inputs import StepOutput
from jaxinfer.runtime.kv_cache import gib, resolve_sizes
from jaxinfer.runtime.runner import Runner
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import Admission, PlanRow, StepPlan, StepResult
from jaxinfer.sharding import make_mesh, tensor_size
from pallas_kernels.dispatch import DeviceTarget


def cases(settings: Settings, part: str = "whole") -> Iterator[Case]:
    bench = EngineBench(engine_sizes(settings, part))
    sizes = bench.sizes
    yield Case("start-up", bench.start_up)
    for number, rows in enumerate(sizes.rows):
        yield Case(f"compiled decode step, rows: {rows}", functools.partial(bench.decode_step, rows))
        if part == "steps" and number == 0:
            yield Case(f"trace, rows: {rows}", functools.partial(traced_steps, bench, rows, settings))
            yield Case(f"loop, rows: {rows}", functools.partial(bench.loop_step, rows))
    if sizes.budget:
        yield Case("compiled prompt step", bench.prompt_step)
    for count in sizes.requests:
        yield Case(f"requests: {count}", functools.partial(bench.serve, count))


class EngineBench:
    """Starts one engine, when it is first needed."""

    def __init__(self, sizes: EngineSizes, scheme: Quantization | None = None) -> None:
        self.sizes = sizes
        self._scheme = scheme
        self._work = LeastWork.of(sizes.shape, scheme or PLAIN)
        self._config = model_config(sizes.shape)
        platform = jax.devices()[0].platform
        fitting = [1] if platform != "tpu" else [tp for tp in valid_tp(self._config) if tp <= jax.device_count()]
        self._mesh = make_mesh(ParallelConfig(tensor=max(fitting)))
        # A page more for each row: a step is planned before the one before it has ended.
        self._num_pages = 1 + sizes.most * (-(-sizes.length // sizes.page_size) + 1)
        self._runtime = RuntimeConfig(
            dtype="bfloat16",
            quantization=scheme,
            page_size=sizes.page_size,
            num_pages=self._num_pages,
            max_model_len=sizes.length + sizes.page_size,
            max_num_seqs=sizes.most,
            max_num_batched_tokens=max(sizes.budget, sizes.most),
            tensor_parallel_size=tensor_size(self._mesh),
            enable_prefix_caching=False,
        )
        self._loop: EngineLoop | None = None
        self._runner: Runner | None = None
        self._started: dict[str, Any] = {}

    # -- start-up ---------------------------------------------------------------------------------------------------

    def start_up(self) -> dict[str, Any]:
        self.start()
        return self._started

    def start(self) -> tuple[EngineLoop, Runner]:
        """The engine and its runner, made when they are first asked for."""
        if self._loop is None or self._runner is None:
            begin = time.perf_counter()
            self._check_memory()
            model = random_model(self.sizes.model, self._config, self._mesh, quantization=self._scheme)
            weights = time.perf_counter()
            self._loop, self._runner = self._assemble(model)
            ready = time.perf_counter()
            stats = jax.devices()[0].memory_stats() or {}
            self._started = {
                "model": self.sizes.model,
                "weights_seconds": weights - begin,
                "compile_seconds": ready - weights,
                "ready_seconds": ready - begin,
                "executables": self._runner.compile_seconds,
                "attention": self._runner.attention_backends(),
                "devices": self._mesh.size,
                "peak_bytes": stats.get("peak_bytes_in_use"),
            }
        return self._loop, self._runner

    def _check_memory(self) -> None:
        """Before anything is made. Raises NotImplementedError."""
        limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
        if limit is None:
            return
        pool = self._num_pages * self.sizes.page_size * (self._work.decode_bytes(1, 1) - self._weight_bytes())
        need = (self._weight_bytes() + 2 * self._work.model * self._work.vocab + pool) // tensor_size(self._mesh)
        if need > 0.95 * limit:
            raise NotImplementedError(f"{self.sizes.model} needs {gib(need)} of a device, which has {gib(limit)}")

    def _weight_bytes(self) -> int:
        return self._work.decode_bytes(0, 0)

    def _assemble(self, model: Model) -> tuple[EngineLoop, Runner]:
        """As `assemble_engine`, with the few buckets that are needed: each takes its time to compile."""
        target = DeviceTarget.of(self._mesh.devices.flat[0])
        layout = make_layout(model, target, self._runtime)
        sizes = resolve_sizes(self._config, self._runtime, layout, None, target.platform)
        runner = make_runner(model, self._mesh, self._runtime, sizes, layout)
        steps = (*self.sizes.rows, *self.sizes.requests, self.sizes.budget)
        wanted = [pick_bucket(runner.ladder, tokens) for tokens in steps if tokens]
        runner.ladder = tuple(sorted(set(wanted)))
        runner.warm_up(lambda done, total, detail: print(f"{done}/{total} {detail}", flush=True))
        limits = SchedulerLimits(
            sizes.max_num_seqs, sizes.max_num_batched_tokens, sizes.max_model_len, enable_prefix_caching=False
        )
        scheduler = Scheduler(limits, PagePool(sizes.num_pages, sizes.page_size))
        return EngineLoop(scheduler, runner, engine_info(model, self._mesh, sizes, runner)), runner

    # -- compiled steps ---------------------------------------------------------------------------------------------

    def decode_step(self, rows: int) -> dict[str, Any]:
        """`rows` sequences in the middle of their generation, one token each."""
        depth = self.sizes.depth
        fields = self._time_step([(1, depth)] * rows)
        return {"floor_bytes": self._work.decode_bytes(rows, depth), "rows": rows, "depth": depth, **fields}

    def prompt_step(self) -> dict[str, Any]:
        """As many whole prompts as a step takes."""
        rows = self.sizes.budget // self.sizes.prompt
        fields = self._time_step([(self.sizes.prompt, self.sizes.prompt)] * rows)
        return {"floor_flops": self._work.prompt_flops(rows, self.sizes.prompt), "rows": rows, **fields}

    def _time_step(self, rows: list[tuple[int, int]]) -> dict[str, Any]:
        bucket, calls = self.step_calls(rows)
        jax.block_until_ready(calls())
        seconds, enqueued = [], []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            output = calls()
            enqueued.append((time.perf_counter() - begin) / self.sizes.steps)
            jax.block_until_ready(output)
            seconds.append((time.perf_counter() - begin) / self.sizes.steps)
        # How long a call takes on the host: near the step itself, the host waits for the device in the middle of it.
        return {"bucket": bucket.name, "call_seconds": statistics.median(enqueued), **summarise(seconds).fields()}

    def step_calls(self, rows: list[tuple[int, int]]) -> tuple[Bucket, Callable[[], StepOutput]]:
        """The bucket of a step of rows of (tokens, tokens of the sequence with them), and what runs it `sizes.steps`
        times. Every call computes the same: rows are admitted once, and the slots are set back for each call."""
        _, runner = self.start()
        plan = _plan(rows, runner.sizes.max_pages_per_sequence, self._config.vocab_size)
        bucket, drawing = pick_bucket(runner.ladder, plan.num_tokens), pick_rows(runner.row_counts, len(plan.rows))
        for admissions in runner._packer.pack_admissions(plan):
            runner._run_admission(admissions)
        inputs = runner._put(runner._packer.pack(plan, bucket))
        assert runner._slots is not None
        computed = np.array(runner._slots.num_computed)
        return bucket, functools.partial(self._calls, runner, bucket, drawing, inputs, computed)

    def _calls(
        self, runner: Runner, bucket: Bucket, drawing: int, inputs: jax.Array, computed: np.ndarray
    ) -> StepOutput:
        for _ in range(self.sizes.steps):
            assert runner._slots is not None
            runner._slots = dataclasses.replace(runner._slots, num_computed=runner._put(computed.copy()))
            output = runner._draw(drawing, runner._run(bucket, inputs))
        return output

    def loop_step(self, rows: int) -> dict[str, Any]:
        """Steps of the whole engine, scheduling and all, beside the compiled one of the same rows: what it takes longer
        is the host's. Prompts of one token: whoever has no bucket for prompts has none to compute."""
        loop, runner = self.start()
        prompts = [_prompt(seed, 1, self._config.vocab_size) for seed in range(rows)]
        self._generate(loop, runner, prompts, 3)  # whatever is done once
        watch, *_ = self._generate(loop, runner, prompts, self.sizes.output)
        alone = self._time_step([(1, 1 + self.sizes.output // 2)] * rows)
        return {"loop_seconds": watch.decode_seconds(rows), "rows": rows, "steps": len(watch.plans), **alone}

    # -- requests ---------------------------------------------------------------------------------------------------

    def serve(self, count: int) -> dict[str, Any]:
        """`count` requests at once, from their arrival to their last token."""
        loop, runner = self.start()
        self._generate(loop, runner, [_prompt(99, 5, self._config.vocab_size)], 3)  # whatever is done once
        prompts = [_prompt(seed, self.sizes.prompt, self._config.vocab_size) for seed in range(count)]
        watch, begin, end = self._generate(loop, runner, prompts, self.sizes.output)
        last_prompt = max(i for i, (tokens, rows) in enumerate(watch.plans) if tokens > rows)
        return {
            "requests": count,
            "output_tokens": count * self.sizes.output,
            "wall_seconds": end - begin,
            "prompt_seconds": watch.done[last_prompt] - begin,
            "prompt_flops": self._work.prompt_flops(count, self.sizes.prompt),
            "decode_step_seconds": watch.decode_seconds(count),
            "decode_steps": self.sizes.output - 1,
            "floor_bytes": self._work.decode_bytes(count, self.sizes.depth),
            "steps": len(watch.plans),
            "compilations": runner.compilations,
            "devices": self._mesh.size,
        }

    def _generate(
        self, loop: EngineLoop, runner: Runner, prompts: list[tuple[int, ...]], tokens: int
    ) -> tuple[_Watch, float, float]:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        loop.runner = watch = _Watch(runner)
        heard = 0
        begin = time.perf_counter()
        for index, prompt in enumerate(prompts):
            loop.scheduler.add(Submit(f"r{index}", prompt, params, index, 0, float(index)))
        while not loop.idle:
            outputs = loop.step()
            heard += len(outputs.sequences) if outputs is not None else 0
        end = time.perf_counter()
        if heard != len(prompts) * tokens:
            raise RuntimeError(f"{heard} tokens came out of {len(prompts)} requests for {tokens} each")
        return watch, begin, end


class _Watch:
    """A runner that writes down what it was given, (tokens, rows), and when each result was there."""

    def __init__(self, runner: Runner) -> None:
        self.plans: list[tuple[int, int]] = []
        self.done: list[float] = []
        self.padded_tokens = runner.padded_tokens
        self._runner = runner

    @property
    def compilations(self) -> int:
        return self._runner.compilations

    def decode_seconds(self, rows: int) -> float | None:
        """The median time between the results of two steps that decode `rows` rows; None where there were none."""
        found = [
            self.done[i] - self.done[i - 1]
            for i in range(1, len(self.plans))
            if self.plans[i - 1] == self.plans[i] == (rows, rows)
        ]
        return statistics.median(found) if found else None

    def dispatch(self, plan: StepPlan) -> _Timed:
        self.plans.append((plan.num_tokens, len(plan.rows)))
        pending = self._runner.dispatch(plan)
        self.padded_tokens = self._runner.padded_tokens
        return _Timed(pending, self.done)


class _Timed:
    def __init__(self, pending: Any, done: list[float]) -> None:
        self._pending, self._done = pending, done

    def result(self) -> StepResult:
        result = self._pending.result()
        self._done.append(time.perf_counter())
        return result

    @property
    def ready(self) -> bool:
        return bool(self._pending.ready)


def _prompt(seed: int, length: int, vocab: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(vocab) for _ in range(length))


def _plan(rows: list[tuple[int, int]], pages_per_row: int, vocab: int) -> StepPlan:
    """Rows of (tokens of this step, tokens of the sequence with them), each in pages and a slot of its own."""
    params = SamplingParams(temperature=0)
    planned = []
    for slot, (count, length) in enumerate(rows):
        pages = tuple(range(1 + slot * pages_per_row, 1 + (slot + 1) * pages_per_row))
        admission = Admission(length - count, length, (pages,), 0, params, 0, 0, (), ())
        ids = _prompt(slot, count, vocab)
        planned.append(PlanRow(f"r{slot}", 0, 0, 0, slot, length - count, count, 1, ids, (), admission, ()))
    return StepPlan(planned, sum(count for count, _ in rows))
