"""How large the KV pool is, from what a device has left, with the arithmetic spelled out; and the pool's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxinfer.cache_groups import UNIFORM, CacheGroups
from jaxinfer.config import (
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    ConfigError,
    ModelConfig,
    RuntimeConfig,
    context_length,
)
from jaxinfer.runtime.device_memory import usable_bytes
from jaxinfer.scheduling.cache_shape import UNBOUNDED, CacheShape
from jaxinfer.sharding import MODEL_AXES
from pallas_kernels.paged_attention.layout import KVLayout, Pages

GIB = 1 << 30
CPU_SHARE = 0.4  # of the memory that is free once the weights are loaded
CPU_LIMIT = 4 * GIB


@dataclass(frozen=True)
class Budget:
    """Bytes one device may spend on its part of the pool, and the sentence that says where the number comes from.

    Below 0: so many are missing for what comes before the pool.
    """

    num_bytes: int
    reason: str


@dataclass(frozen=True)
class Sizes:
    """The engine's resolved sizes. kv_bytes_per_token is over all layers and devices, of a token that all of them still
    see; notes say what was chosen."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    num_pages: int
    kv_bytes_per_token: int
    pool_bytes: int
    notes: tuple[str, ...]
    cache_groups: CacheGroups = UNIFORM

    @property
    def max_pages_per_sequence(self) -> int:
        """Of each of its page tables, whether they hold something or not."""
        return -(-self.max_model_len // self.page_size)

    @property
    def shape(self) -> CacheShape:
        """What sequences need of the pool."""
        return CacheShape(self.cache_groups, self.page_size, self.max_num_batched_tokens, self.max_model_len)


def free_host_bytes() -> int:
    """Memory this process may still take: the machine's, or its cgroup's (v2) when that is less."""
    free = _meminfo_available()
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free = min(free, int(limit) - used + int(stat.get("inactive_file", 0)))
    except FileNotFoundError:
        return free  # no cgroup v2 here: the machine's own number stands
    return max(free, 0)


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise ConfigError("/proc/meminfo has no MemAvailable line; set num_pages to size the KV pool by hand")


def free_bytes(device: Any) -> int | None:
    """Bytes that this process may still take of a device: of a CPU host memory; None where it does not say."""
    if device.platform == "cpu":
        return free_host_bytes()
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def device_budget(
    device: Any, runtime: RuntimeConfig, *, temporaries: int, weights_to_come: int = 0, memory: int | None = None
) -> Budget:
    """What the pool may take on one device.

    temporaries: what is needed beside weights and pool. weights_to_come: not loaded yet. memory: bytes of a device
    which is not here, and cannot be asked.
    """
    if device.platform == "cpu":
        free = (free_host_bytes() if memory is None else memory) - weights_to_come
        if free < 0:
            return Budget(free, f"{gib(free + weights_to_come)} of host memory are free")
        share = int(CPU_SHARE * free) // runtime.parallel.num_devices
        if share > CPU_LIMIT:
            return Budget(CPU_LIMIT, f"{gib(CPU_LIMIT)}, the most that is taken unasked on a CPU")
        return Budget(share, f"{CPU_SHARE:.0%} of {gib(free)} free host memory = {gib(share)}")
    utilization = runtime.gpu_memory_utilization
    usable = usable_bytes(device, utilization) if memory is None else int(memory * utilization)
    if usable is None:
        raise ConfigError(f"{device.device_kind} does not report its memory; set num_pages to size the KV pool by hand")
    used = weights_to_come + (device.memory_stats()["bytes_in_use"] if memory is None else 0)
    left = usable - used - temporaries
    return Budget(
        left,
        f"{gib(usable)} usable (gpu_memory_utilization = {utilization:g}) - {gib(used)} in use - "
        f"{gib(temporaries)} temporaries = {gib(left)}",
    )


def resolve_sizes(
    config: ModelConfig, runtime: RuntimeConfig, layout: KVLayout, budget: Budget | None, platform: str
) -> Sizes:
    """Chooses what the runtime config leaves open. `budget` None needs `runtime.num_pages`.

    Raises ConfigError, with the arithmetic, when what was asked for cannot fit.
    """
    notes = list(config.notes)
    rows = runtime.max_num_seqs or min(
        MAX_NUM_SEQS.get(platform, MAX_NUM_SEQS["accelerator"]), runtime.max_num_batched_tokens or 1024
    )
    tokens = runtime.max_num_batched_tokens or max(
        MAX_NUM_BATCHED_TOKENS.get(platform, MAX_NUM_BATCHED_TOKENS["accelerator"]), rows
    )
    page = runtime.page_size
    groups = config.cache_groups
    page_bytes = layout.bytes_per_page * groups.depth
    length = context_length(config, runtime)
    shape, per_sequence = CacheShape(groups, page, tokens, length), -(-length // page)
    enough = shape.most_pages(per_sequence) + (rows - 1) * shape.decode_pages(per_sequence) + 1
    if runtime.num_pages is not None:
        pages, source = runtime.num_pages, f"num_pages = {runtime.num_pages}"
    else:
        assert budget is not None
        fitting = budget.num_bytes * runtime.parallel.num_devices // page_bytes
        pages = int(min(fitting, enough))
        of = "" if groups.num_tables == 1 else f" in {groups.depth} layers"
        source = f"{budget.reason}; a page of {page} tokens{of} takes {page_bytes:,} bytes"
        if pages <= fitting and pages == enough:
            source = f"room for {rows} sequences of {length:,} tokens"
    if pages < 1 + shape.each:
        raise ConfigError(
            f"the KV pool does not fit: {source}, so {max(pages, 0)} pages; at least {1 + shape.each} are needed"
        )
    holds = shape.longest(pages - 1) * page
    if holds < length:
        if runtime.max_model_len is not None:
            missing = (shape.most_pages(per_sequence) + 1 - pages) * page_bytes // runtime.parallel.num_devices
            raise ConfigError(
                f"max_model_len is {length}, but the KV pool holds {holds} tokens ({source}); lower max_model_len: "
                f"{gib(missing)} a device are missing"
            )
        notes.append(f"max_model_len = {holds}: the pool holds fewer tokens than the model's context of {length}")
        length = holds
    elif runtime.max_model_len is None:
        notes.append(f"max_model_len = {length}: the model's context{_shortened(config)}")
    if runtime.num_pages is not None:
        source += ", of which one holds nothing"
    if groups.num_tables > 1:
        notes.append(_tables_of(groups, shape))
    return Sizes(
        max_model_len=length,
        max_num_seqs=rows,
        max_num_batched_tokens=tokens,
        page_size=page,
        num_pages=pages,
        kv_bytes_per_token=page_bytes * groups.num_tables // page,
        pool_bytes=pages * page_bytes,
        notes=(*notes, f"KV pool: {pages - 1:,} pages of {page} tokens, {gib(pages * page_bytes)}: {source}"),
        cache_groups=groups,
    )


def _tables_of(groups: CacheGroups, shape: CacheShape) -> str:
    """What the page tables of several groups of layers are, in words."""
    parts = []
    for group, most in zip(groups.groups, shape.most, strict=True):
        tables = f"{len(group.tables)} page table{'s' * (len(group.tables) > 1)} for {len(group.layers)} layers"
        window = group.spec.window
        bound = f", at most {most} pages of a sequence in each" if most < UNBOUNDED else ""
        parts.append(tables + ("" if window is None else f" with a window of {window}") + bound)
    return f"{groups.num_tables} page tables, a page being {groups.depth} layers of one: {'; '.join(parts)}"


def check_room(device: Any, sizes: Sizes, shards: int) -> None:
    """Raises ConfigError when the pool, sized by hand perhaps, is larger than what is free now: at once, instead of
    after everything was compiled, or on a CPU when the system kills the process for the pages that it fills."""
    free, wanted, where = free_bytes(device), sizes.pool_bytes, "host memory"
    if device.platform != "cpu":
        wanted, where = wanted // shards, f"memory on each {device.device_kind}"
    if free is not None and wanted > free:
        most = max(0, free) * sizes.num_pages // wanted
        raise ConfigError(
            f"num_pages is {sizes.num_pages}; a pool of that size takes {gib(wanted)}, and {gib(free)} of {where} are "
            f"free: at most {most} pages fit"
        )


def _shortened(config: ModelConfig) -> str:
    if config.usual == config.longest:
        return ""
    return (
        f", which model_max_length = {config.tokenizer_length} in tokenizer_config.json shortens; "
        f"--max-model-len up to {config.longest} is possible"
    )


def make_pool(layout: KVLayout, depth: int, num_pages: int, mesh: Mesh, *, looped: bool) -> list[tuple[Pages, Pages]]:
    """Zeroed K and V pages, sharded on heads: as many pairs of arrays as a page has room for layers.

    looped: one pair has them all, array i from page i * num_pages on, so that a loop over layers can carry it.
    """
    shardings = layout.shardings(mesh, MODEL_AXES)
    if looped:
        return [layout.zeros(depth * num_pages, shardings)]
    return [layout.zeros(num_pages, shardings) for _ in range(depth)]


def abstract_pool(layout: KVLayout, depth: int, num_pages: int, mesh: Mesh, *, looped: bool) -> list[tuple[Any, Any]]:
    """The same, as shapes for lowering without memory."""
    struct = layout.struct(depth * num_pages if looped else num_pages, layout.shardings(mesh, MODEL_AXES))
    return [(struct, struct)] * (1 if looped else depth)


def gib(num_bytes: float) -> str:
    """A byte count for people: MiB below one GiB."""
    return f"{num_bytes / GIB:.2f} GiB" if abs(num_bytes) >= GIB else f"{num_bytes / (1 << 20):.1f} MiB"
