#!/usr/bin/env bash
# Asked: which rotary theta do the layers of an OLMo 3 have whose config.json says rope_theta once, at the top, as
# published ones do, and another value than 500000?
# Version: transformers 5.24.0, Python 3.12.
# Behaviour: layers without a window get the file's value; layers with one get 500000 whatever the file says, and no
# warning tells. A fine-tune with another theta is computed with two.
# Output seen (2026-11-30), with rope_theta 10000.0: sliding_attention 500000.0, full_attention 10000.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
mkdir "$folder/model"
cat >"$folder/model/config.json" <<'JSON'
{"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "hidden_size": 64, "num_hidden_layers": 4,
 "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64, "vocab_size": 50304,
 "max_position_embeddings": 512, "rope_theta": 10000.0, "sliding_window": 32,
 "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]}
JSON
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder/model" <<'PY'
import sys

import transformers

rope = transformers.AutoConfig.from_pretrained(sys.argv[1]).rope_parameters
for kind, settings in rope.items():
    print(kind, settings["rope_theta"])
assert rope["full_attention"]["rope_theta"] == 10000.0
assert rope["sliding_attention"]["rope_theta"] == 500000.0, "the behaviour has changed"
PY
