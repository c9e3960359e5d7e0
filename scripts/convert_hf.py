"""Convert a Hugging Face folder: `python scripts/convert_hf.py HF_DIR OUT_DIR` (the same as `jaxinfer convert`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from checkpoints.convert import main

if __name__ == "__main__":
    sys.exit(main())
