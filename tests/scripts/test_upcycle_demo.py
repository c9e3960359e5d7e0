"""The demo made into a mixture of experts: the same function, with tokens of one text at both groups of experts."""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.longer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as `python scripts/upcycle_demo.py` has it

from upcycle_demo import ACTIVE, GROUPS, upcycle  # noqa: E402

from checkpoints.load import load_model  # noqa: E402
from jaxinfer.config import MoeConfig  # noqa: E402
from jaxinfer.model_path import demo_path  # noqa: E402
from jaxinfer.models.layers import moe  # noqa: E402
from tests.jaxinfer.models.dense import Dense  # noqa: E402
