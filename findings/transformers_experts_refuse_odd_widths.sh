#!/usr/bin/env bash
# Asked: logits of a mixture of experts on a CPU, with transformers' defaults: Qwen3MoeForCausalLM with random weights,
# whose experts are 33 wide in float32, or 36 wide in bfloat16, or 32 wide in float64.
# Version: transformers 5.24.0, torch 2.13.0, Python 3.12, CPU only.
# Behaviour: the config is valid and the model is made, but its forward pass raises RuntimeError. The default
# implementation of the experts (grouped_mm) is chosen without a look at the widths or the type: torch's grouped product
# wants rows whose bytes are a multiple of 16, and no float64. With experts_implementation="eager" the same model computes.
# Output seen (2026-11-30): 33 float32 -> strides should be multiple of 16 bytes; 36 bfloat16 -> the same; 32 float64 ->
# Expected mat_a to be Float32, BFloat16 or Float16 matrix, got Double; 32 float32 -> ok; eager -> ok for all four.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error CUDA_VISIBLE_DEVICES="" "$folder/venv/bin/python" - <<'PY'
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def outcome(width: int, dtype: torch.dtype, **settings: str) -> str:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=width, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM._from_config(config, **settings).to(dtype).eval()
    try:
        with torch.no_grad():
            model(torch.arange(6)[None])
    except RuntimeError as error:
        return str(error)
    return "ok"


seen = {}
for width, dtype in ((32, torch.float32), (33, torch.float32), (36, torch.bfloat16), (32, torch.float64)):
    for name, settings in (("default", {}), ("eager", {"experts_implementation": "eager"})):
        seen[width, dtype, name] = outcome(width, dtype, **settings)
        print(width, dtype, name, "->", seen[width, dtype, name])
assert all(found == "ok" for (_, _, name), found in seen.items() if name == "eager")
assert seen[32, torch.float32, "default"] == "ok"
failed = [found for (width, dtype, name), found in seen.items() if name == "default" and (width, dtype) != (32, torch.float32)]
assert all(found != "ok" for found in failed), "the behaviour has changed"
PY
