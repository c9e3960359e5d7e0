"""What a user asks of a quantizing conversion. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkpoints.storage import KV_CACHE_DTYPES
from jaxinfer.config import ConfigError, require

SKIPS = ("auto",)
GROUPS = (32, 64, 128)  # inputs that may share a scale


@dataclass(frozen=True)
class Quantizing:
    """A quantizing conversion.

    Attributes:
        scheme: of matrices that no rule of the policy matches; None: nothing is rounded.
        policy: TOML file of rules (`checkpoints.quantizing.policy`).
        calibrate: file of samples (`checkpoints.quantizing.samples`) that the dense model is run over.
        skip: "auto" keeps the matrices that lose most wider (`checkpoints.quantizing.skipping`).
        group: inputs that share a scale in `scheme`; None: for int4 the largest possible of 128, 64 and 32.
        kv_cache_dtype: "int8" or "fp8", what keys and values are kept in when the user of the result says nothing.
    """

    scheme: str | None = None
    policy: Path | None = None
    calibrate: Path | None = None
    skip: str | None = None
    group: int | None = None
    kv_cache_dtype: str | None = None

    def check(self) -> None:
        """Raises ConfigError for a value that cannot be, or an option that means nothing without `scheme`."""
        from jaxinfer.quantization import SCHEMES

        if self.scheme is None:
            for name in ("policy", "calibrate", "skip", "group"):
                value = getattr(self, name)
                require(value is None, f"{name} is {str(value)!r}; it goes with quantize, which is None")
        elif self.scheme not in SCHEMES:
            raise ConfigError(f"quantize is {self.scheme!r}; it must be one of {', '.join(SCHEMES)}, or None")
        else:
            check_group("group", self.group, self.scheme)
        require(self.skip in (None, *SKIPS), f"skip is {self.skip!r}; it must be one of {', '.join(SKIPS)}, or None")
        require(
            self.kv_cache_dtype in (None, *KV_CACHE_DTYPES),
            f"kv_cache_dtype is {self.kv_cache_dtype!r}; it must be one of {', '.join(KV_CACHE_DTYPES)}, or None",
        )


def check_group(where: str, group: object, scheme: str) -> None:
    """Raises ConfigError if matrices of `scheme` cannot have a scale for each `group` inputs. None: as the scheme does.

    Where activations are rounded too, sums of narrow products need one scale for each output; mxfp4's groups are 32.
    """
    from jaxinfer.quantization import SCHEMES
    from pallas_kernels.qtensor import FIXED_GROUPS

    if group is None:
        return
    require(
        type(group) is int and group in GROUPS, f"{where} is {group!r}; it must be one of {', '.join(map(str, GROUPS))}"
    )
    grouped = [name for name, one in SCHEMES.items() if one.activations is None and one.kind not in FIXED_GROUPS]
    require(scheme in grouped, f"{where} is {group}; it goes with {', '.join(grouped)}, not with {scheme}")
