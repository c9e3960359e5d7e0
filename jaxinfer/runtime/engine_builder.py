"""Puts a loaded model, a scheduler and a runner together into an `EngineLoop`."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxinfer.config import ConfigError, ModelConfig, RuntimeConfig
from jaxinfer.constraints.matching import Matching
from jaxinfer.constraints.vocabulary import ComingVocabulary
from jaxinfer.engine import EngineLoop
from jaxinfer.engine_parts import Grammars
from jaxinfer.messages import EngineInfo, Progress
from jaxinfer.models.model import Model
from jaxinfer.runtime.compile_cache import compiling_into
from jaxinfer.runtime.cpu_kernels import choose_form
from jaxinfer.runtime.device_memory import AUTOTUNING, claim_memory
from jaxinfer.runtime.executables import ExecutableSource
from jaxinfer.runtime.kv_cache import Sizes, check_room, device_budget, resolve_sizes
from jaxinfer.runtime.runner import Runner
from jaxinfer.runtime.step import StepSpec
from jaxinfer.runtime.topology import collectives
from jaxinfer.sampling_params import MAX_LOGPROBS
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.sharding import expert_size, local_bytes, model_size, tensor_size
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention.layout import KVLayout, kv_layout
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul.xla_cost import cost_on_gpu

OnProgress = Callable[[Progress], None]
PROBE_PAGES = 8
DRAWING_COPIES = 6  # of the logits, (rows, vocabulary) float32: what XLA:CPU keeps while a program draws


def configure_jax(runtime: RuntimeConfig) -> None:
    """Process-wide JAX settings: the share of a GPU's memory, virtual CPU devices for parallelism without accelerators,
    and the persistent compilation cache, which keeps every entry, however quick.

    Memory and device counts are fixed once JAX has started; then `make_mesh` says how many there are. Raises
    ConfigError for a cache that cannot be written.
    """
    claim_memory(runtime.gpu_memory_utilization)
    devices = runtime.parallel.num_devices
    if devices > max(1, getattr(jax.config, "jax_num_cpu_devices", 1)):
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # JAX runs already, in whoever imported us: its devices are what there is
            logging.getLogger(__name__).info("JAX has started; its device count stays as it is")
    if runtime.compilation_cache_dir is None:
        return
    try:
        folder = Path(runtime.compilation_cache_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise ConfigError(
            f"compilation_cache_dir is {runtime.compilation_cache_dir!r}; it must be a folder that can be written, or "
            f"none: {error}"
        ) from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_layout(model: Model, target: DeviceTarget, runtime: RuntimeConfig) -> KVLayout:
    """How this model's keys and values lie in the device's memory."""
    dtype = runtime.pages_dtype(model.dtype)
    shards, head_dim = runtime.parallel.num_devices, model.config.attentions[0].head_dim  # the same in all layers
    return kv_layout(target, dtype, model.shape.kv_heads, head_dim, runtime.page_size, shards)


def make_runner(model: Model, mesh: Mesh, runtime: RuntimeConfig, sizes: Sizes, layout: KVLayout) -> Runner:
    leaves, treedef = jax.tree.flatten(model.params)
    form = choose_form(model, mesh, runtime)
    spec = StepSpec(
        config=model.config,
        graphdef=model.graphdef,
        treedef=treedef,
        mesh=mesh,
        target=replace(DeviceTarget.of(mesh.devices.flat[0]), instructions=form.instructions),
        page_size=sizes.page_size,
        dtype=model.dtype,
        attention_backend=runtime.attention_backend,
        max_logprobs=resolve_max_logprobs(runtime, model.config),
        form=form.why,
    )
    return Runner(
        spec,
        leaves,
        sizes,
        layout,
        model.shape.vocab,
        batch_invariant=runtime.batch_invariant,
        step_sizes=runtime.step_sizes,
    )


def possible_tokens(token_ids: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """Those of a checkpoint's end tokens that its model can generate: the others end nothing."""
    return tuple(token for token in token_ids if 0 <= token < vocab_size)


def resolve_max_logprobs(runtime: RuntimeConfig, config: ModelConfig) -> int:
    """Alternatives that every step makes room for. Raises ConfigError when the vocabulary has fewer tokens."""
    if runtime.max_logprobs == -1:
        return config.vocab_size
    most = max(config.vocab_size, MAX_LOGPROBS)
    if runtime.max_logprobs > most:
        raise ConfigError(
            f"max_logprobs is {runtime.max_logprobs}; it must be at most {most} (the vocabulary), or -1 for all of it"
        )
    return runtime.max_logprobs


@dataclass(frozen=True)
class StepProbe:
    """What the largest step needs on one device beside weights and pool, in bytes, asked of the compiled programs.

    temporaries: of the forward pass, or of what draws after it, whichever needs more. tuning: what XLA takes to try
    forms of the largest product while it compiles beside the pool, on a GPU. collectives: those of the forward pass,
    kind -> (how many, bytes of their results).
    """

    bucket: str
    temporaries: int
    tuning: int
    slot_bytes: int
    collectives: Mapping[str, tuple[int, int]]

    @property
    def beside(self) -> int:
        """All that is needed beside weights and pool: nothing runs while a program is compiled."""
        return max(self.temporaries, self.tuning) + self.slot_bytes


def probe_step(model: Model, mesh: Mesh, runtime: RuntimeConfig, layout: KVLayout) -> StepProbe:
    """Compiles the largest step with a tiny pool: its temporaries do not depend on the pool's size.

    On a CPU that is the forward pass alone. What draws has `DRAWING_COPIES` of the logits beside it there; elsewhere it
    is compiled, too.

    The model may be abstract. Raises ConfigError where the backend gives no memory analysis.
    """
    device = mesh.devices.flat[0]
    length = runtime.max_model_len or model.config.usual
    # A pool that holds one sequence gives the page tables their real width.
    whole = replace(runtime, num_pages=-(-length // runtime.page_size) * model.config.cache_groups.num_tables + 1)
    runner = make_runner(
        model, mesh, runtime, resolve_sizes(model.config, whole, layout, None, device.platform), layout
    )
    bucket = runner.ladder[-1]
    programs, rows = runner.programs, runner.row_counts[-1]
    step = programs.step(bucket, PROBE_PAGES).compile()
    needs = [_beside(step, device)]
    if device.platform == "cpu":
        needs.append(DRAWING_COPIES * rows * model.shape.vocab * 4)
    else:
        needs += [_beside(program.compile(), device) for program in (programs.draw(rows), programs.score())]
    largest = max(map(local_bytes, jax.tree.leaves(model.params)))
    tuning = AUTOTUNING + largest if device.platform == "gpu" else 0
    state = programs.abstract_slots(), programs.abstract_hidden(), programs.abstract_expert_tokens()
    kept = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return StepProbe(bucket.name, max(needs), tuning, kept, collectives(step.as_text() or "") if mesh.size > 1 else {})


def _beside(compiled: jax.stages.Compiled, device: jax.Device) -> int:
    """Bytes that a program needs beside its arguments."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise ConfigError(f"{device.device_kind} gives no memory analysis; set num_pages to size the KV pool by hand")
    return int(memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes))


def choose_sizes(model: Model, mesh: Mesh, runtime: RuntimeConfig, layout: KVLayout) -> Sizes:
    """Sizes for this device, weights loaded. Accelerators subtract the largest step's needs; a CPU keeps 60 % free."""
    device = mesh.devices.flat[0]
    budget = None
    if runtime.num_pages is None:
        extra = 0
        if device.platform != "cpu":
            extra = probe_step(model, mesh, runtime, layout).beside
        budget = device_budget(device, runtime, temporaries=extra)
    sizes = resolve_sizes(model.config, runtime, layout, budget, device.platform)
    check_room(device, sizes, model_size(mesh))
    return sizes


def assemble_engine(
    model: Model,
    mesh: Mesh,
    runtime: RuntimeConfig,
    progress: OnProgress | None = None,
    *,
    check: bool = False,
    source: ExecutableSource | None = None,
    vocabulary: ComingVocabulary | None = None,
) -> EngineLoop:
    """Sizes the pool, compiles every bucket and returns a loop that is ready to run. With `serve_while_warming` it
    compiles what the smallest step needs, and the loop takes the rest while it runs.

    check: verify the scheduler's books after every step (tests). source: where executables come from; None compiles
    them. vocabulary: for grammars; without it requests with one are refused. Raises ConfigError when something cannot
    fit.
    """
    target = DeviceTarget.of(mesh.devices.flat[0])
    layout = make_layout(model, target, runtime)
    with contextlib.ExitStack() as stack:
        stack.enter_context(compiling_into(runtime.compilation_cache_dir))
        sizes = choose_sizes(model, mesh, runtime, layout)
        runner = make_runner(model, mesh, runtime, sizes, layout)
        warm_up = runner.begin if runtime.serve_while_warming else runner.warm_up
        warm_up(_warm_up_progress(progress), source)
        compiling = stack.pop_all() if not runner.whole else stack
    config = model.config
    limits = SchedulerLimits(
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        max_model_len=sizes.max_model_len,
        eos_token_ids=possible_tokens(config.eos_token_ids, config.vocab_size),
        vocab_size=config.vocab_size,
        longrope_border=config.longrope_border,
        priority_ageing_seconds=runtime.priority_ageing_seconds,
        enable_prefix_caching=runtime.enable_prefix_caching,
        max_pinned_ratio=runtime.max_pinned_ratio,
        max_pinned_ratio_per_tenant=runtime.max_pinned_ratio_per_tenant,
        cache_groups=config.cache_groups,
    )
    scheduler = Scheduler(limits, PagePool(sizes.num_pages, sizes.page_size))
    return EngineLoop(
        scheduler,
        runner,
        engine_info(model, mesh, sizes, runner)._replace(max_pinned_pages=scheduler.max_pinned_pages),
        check=check,
        warm_up=None if runner.whole else runner,
        on_warm=compiling.close,
        grammars=None if vocabulary is None else Grammars(Matching(vocabulary), runner),
        expert_loads=runner.expert_counts,
    )


def _warm_up_progress(progress: OnProgress | None) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    return lambda done, total, detail: progress(Progress("warmup", done, total, detail))


def engine_info(model: Model, mesh: Mesh, sizes: Sizes, runner: Runner) -> EngineInfo:
    device = mesh.devices.flat[0]
    quantized = jax.tree.leaves(model.params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    costs = (
        runner.attention_cost(),
        cost_on_gpu((leaf for leaf in quantized if isinstance(leaf, QTensor)), model.dtype),
    )
    return EngineInfo(
        model=model.name,
        architecture=model.config.architecture,
        vocab_size=model.config.vocab_size,
        max_model_len=sizes.max_model_len,
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        page_size=sizes.page_size,
        num_pages=sizes.num_pages,
        dtype=model.dtype,
        tensor_parallel_size=tensor_size(mesh),
        expert_parallel_size=expert_size(mesh),
        expert_layers=model.config.expert_layers,
        device=f"{mesh.size} x {device.device_kind}",
        backends={"paged_attention": runner.attention_backends(), "products": runner.spec.product_backend},
        eos_token_ids=model.config.eos_token_ids,
        notes=(*sizes.notes, *model.notes, f"products: {runner.spec.form}", *filter(None, costs)),
        executables=tuple(runner.compile_seconds),
        extra={"weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))},
        max_logprobs=runner.spec.max_logprobs,
        num_page_tables=sizes.cache_groups.num_tables,
        window_tokens=sizes.max_model_len if sizes.shape.windows else None,
    )
