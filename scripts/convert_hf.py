"""Convert a Hugging Face folder: `python scripts/convert_hf.py HF_DIR OUT_DIR` (the same as `jaxinfer convert`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from jaxinfer.model_path import hub_cache_from
from serving.commands.convert import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], hub_cache=hub_cache_from(os.environ)))
