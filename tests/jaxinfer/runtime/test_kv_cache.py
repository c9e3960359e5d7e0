"""Sizing: what the engine chooses, what it refuses, and the arithmetic it shows."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest

from jaxinfer.config import AttentionConfig, ConfigError, LayerConfig, MlpConfig, ModelConfig, RopeConfig, RuntimeConfig
from jaxinfer.runtime.device_memory import FRACTIONS
from jaxinfer.runtime.kv_cache import GIB, Budget, check_room, device_budget, free_host_bytes, gib, resolve_sizes
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention.layout import kv_layout

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=64,
    max_position_embeddings=4096,
    layers=(LayerConfig(AttentionConfig(4, 2, 16, scale=0.25), MlpConfig(128)),) * 2,
    ropes=(RopeConfig("default", 10000.0, 16),),
)
LAYOUT = kv_layout(DeviceTarget("cpu", "cpu"), "float32", 2, 16, 64)
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4  # layers, K and V, heads, head_dim, float32


def test_plenty_of_memory() -> None:
    sizes = resolve_sizes(CONFIG, RuntimeConfig(), LAYOUT, Budget(4 * GIB, "plenty"), "cpu")
    assert (sizes.max_model_len, sizes.max_num_seqs, sizes.max_num_batched_tokens) == (4096, 64, 256)
    assert sizes.kv_bytes_per_token == TOKEN_BYTES
    assert sizes.num_pages == 64 * 64 + 1  # no more than all rows at full length could use
    assert sizes.notes[0] == "max_model_len = 4096: the model's context"


def test_pool_shrinks_the_context_and_says_so() -> None:
    budget = Budget(10 * 64 * TOKEN_BYTES, "ten pages")
    sizes = resolve_sizes(CONFIG, RuntimeConfig(), LAYOUT, budget, "cpu")
    assert (sizes.num_pages, sizes.max_model_len) == (10, 9 * 64)
    assert "the pool holds fewer tokens than the model's context of 4096" in sizes.notes[0]
    with pytest.raises(ConfigError, match=r"max_model_len is 1000, but the KV pool holds 576 tokens \(ten pages"):
        resolve_sizes(CONFIG, RuntimeConfig(max_model_len=1000), LAYOUT, budget, "cpu")


def test_refusals_name_field_value_and_limit() -> None:
    with pytest.raises(
        ConfigError, match="max_model_len is 5000; the model's max_position_embeddings allows at most 4096"
    ):
        resolve_sizes(CONFIG, RuntimeConfig(max_model_len=5000), LAYOUT, Budget(GIB, ""), "cpu")
    dynamic = replace(
        CONFIG, ropes=(RopeConfig("dynamic", 10000.0, 16, factor=2.0, original_max_position_embeddings=4096),)
    )
    with pytest.raises(ConfigError, match="dynamic RoPE is served inside the trained length only"):
        resolve_sizes(dynamic, RuntimeConfig(max_model_len=5000), LAYOUT, Budget(GIB, ""), "cpu")
    with pytest.raises(ConfigError, match=r"does not fit: nothing left; a page of 64 tokens takes .*, so 0 pages"):
        resolve_sizes(CONFIG, RuntimeConfig(), LAYOUT, Budget(-100 << 20, "nothing left"), "cpu")
    with pytest.raises(ConfigError, match="max_num_batched_tokens is 4; it must be at least max_num_seqs 8"):
        RuntimeConfig(max_num_seqs=8, max_num_batched_tokens=4)


def test_cpu_budget_is_a_share_of_what_is_free() -> None:
    budget = device_budget(jax.devices()[0], RuntimeConfig(), temporaries=0)
    assert 0 < budget.num_bytes <= min(4 * GIB, 0.5 * free_host_bytes())
    capped = budget.num_bytes == 4 * GIB
    assert ("the most that is taken unasked on a CPU" if capped else "40% of") in budget.reason
    assert budget.reason.count("GiB") + budget.reason.count("MiB") == (1 if capped else 2)
    with_weights = device_budget(
        jax.devices()[0], RuntimeConfig(), temporaries=0, weights_to_come=free_host_bytes() * 2
    )
    assert with_weights.num_bytes < 0  # so many are missing


class FakeGpu:
    platform = "gpu"
    device_kind = "NVIDIA H200"

    def __init__(self, stats: dict[str, int] | None) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats


def test_accelerator_budget_subtracts_use_and_temporaries(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three quarters of 100 GiB are what XLA sets aside by itself.
    for name in FRACTIONS:
        monkeypatch.delenv(name, raising=False)
    gpu = FakeGpu({"bytes_limit": 75 * GIB, "bytes_in_use": 20 * GIB})
    budget = device_budget(gpu, RuntimeConfig(gpu_memory_utilization=0.5), temporaries=5 * GIB, weights_to_come=GIB)
    assert budget.num_bytes == 50 * GIB - 20 * GIB - GIB - 5 * GIB
    assert budget.reason == (
        "50.00 GiB usable (gpu_memory_utilization = 0.5) - 21.00 GiB in use - 5.00 GiB temporaries = 24.00 GiB"
    )
    elsewhere = device_budget(FakeGpu(None), RuntimeConfig(), temporaries=GIB, weights_to_come=GIB, memory=10 * GIB)
    assert elsewhere.num_bytes == 7 * GIB
    with pytest.raises(ConfigError, match="set num_pages"):
        device_budget(FakeGpu(None), RuntimeConfig(), temporaries=0)


def test_a_pool_that_is_larger_than_what_is_free_is_refused_before_anything_is_compiled() -> None:
    sizes = resolve_sizes(CONFIG, RuntimeConfig(num_pages=10_000_000_000), LAYOUT, None, "cpu")
    with pytest.raises(ConfigError, match=r"num_pages is 10000000000; .* of host memory are free: at most \d+ pages"):
        check_room(jax.devices()[0], sizes, 1)
    sizes = resolve_sizes(CONFIG, RuntimeConfig(num_pages=100), LAYOUT, None, "cpu")
    check_room(jax.devices()[0], sizes, 1)
    free = sizes.pool_bytes // 2
    gpu = FakeGpu({"bytes_limit": free + GIB, "bytes_in_use": GIB})
    check_room(gpu, sizes, 2)
    with pytest.raises(ConfigError, match=r"num_pages is 100; .* on each NVIDIA H200 are free: at most 50 pages fit"):
        check_room(gpu, sizes, 1)
    check_room(FakeGpu(None), sizes, 1)  # it does not say


def test_gib() -> None:
    assert (gib(3 * GIB), gib(5 << 20)) == ("3.00 GiB", "5.0 MiB")
