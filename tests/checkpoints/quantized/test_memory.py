"""How much host memory the loading of a quantized checkpoint takes: the finished leaves, and one matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.quantized.models import tiny, write_folder
from tests.checkpoints.quantized.test_formats import MXFP4

HIDDEN, WIDTH, LAYERS = 2048, 8192, 3
MB = 2**20

# Loads a folder and prints in bytes: what the process held before, the highest since, all leaves, the largest leaf. The
# kernel forgets the highest when 5 is written to clear_refs. A small load comes first and brings what every load needs.
SCRIPT = """
import sys
import jax
from checkpoints.load import load_model

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

load_model(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
model = load_model(sys.argv[2])
leaves = [leaf.nbytes for leaf in jax.tree.leaves(model.params)]
print(before, status("VmHWM"), sum(leaves), max(leaves))
"""


def write(folder: Path, hidden: int, width: int, layers: int) -> Path:
    config = tiny("llama").config | {
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "quantization_config": MXFP4,
    }
    random = np.random.default_rng(0)
    tensors = {"model.embed_tokens.weight": np.ones((config["vocab_size"], hidden), np.float32)}
    tensors["model.norm.weight"] = np.ones(hidden, np.float32)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = np.ones(hidden, np.float32)
        for name, (outputs, inputs) in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 2, hidden),
            "self_attn.v_proj": (hidden // 2, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (width, hidden),
            "mlp.up_proj": (width, hidden),
            "mlp.down_proj": (hidden, width),
        }.items():
            tensors[f"{prefix}{name}.weight_blocks"] = random.integers(
                0, 256, (outputs, inputs // 32, 16), np.uint8, endpoint=False
            )
            tensors[f"{prefix}{name}.weight_scales"] = np.full((outputs, inputs // 32), 120, np.uint8)
    write_folder(folder, config, tensors)
    return folder


@pytest.mark.longer
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the highest memory is read from Linux' /proc")
def test_mxfp4_takes_its_leaves_and_one_matrix(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    small, large = write(tmp_path / "small", 128, 256, 1), write(tmp_path / "large", HIDDEN, WIDTH, LAYERS)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small), str(large)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, highest, leaves, largest = map(int, done.stdout.split())
    wide = LAYERS * 2 * HIDDEN * (3 * HIDDEN + 3 * WIDTH)  # bytes of the matrices in bfloat16
    print(f"{(highest - before) / MB:.0f} MB for leaves of {leaves / MB:.0f}, the largest {largest / MB:.0f}")
    assert leaves < 0.3 * wide
    # What is no leaf does not grow with the model: 35 MB of allocators, read-ahead and tables when this was written.
    assert highest - before < leaves + largest + 64 * MB < 0.6 * wide
