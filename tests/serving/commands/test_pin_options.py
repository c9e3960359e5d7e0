"""What `jaxinfer serve` lets tenants pin."""

from __future__ import annotations

import pytest

from jaxinfer.config import ConfigError, RuntimeConfig
from serving.commands import serve


def test_one_tenant_may_pin_all_that_may_be_pinned():
    for argv, share in (
        ([], 1.0),
        (["--api-key", "k"], 0.5),
        (["--api-keys", "file"], 0.5),
        (["--max-pinned-ratio-per-tenant", "0.25"], 0.25),
    ):
        runtime = serve.runtime_of(serve.make_parser("x").parse_args([*argv, "--max-pinned-ratio", "0.75"]))
        assert (runtime.max_pinned_ratio, runtime.max_pinned_ratio_per_tenant) == (0.75, share)
    with pytest.raises(ConfigError, match=r"max_pinned_ratio is 1\.5; it must be 0 to 1"):
        RuntimeConfig(max_pinned_ratio=1.5)
