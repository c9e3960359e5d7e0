"""The harness's own command line, with `--model jaxinfer` known to it.

lm-eval up to 0.4.13 knows only the models in its own source; later versions find this one by the entry point in
pyproject.toml, so that `lm_eval run --model jaxinfer` does the same.
"""

from __future__ import annotations

import importlib.util
import sys


def main() -> int:
    """Runs lm-eval on sys.argv; 2 when it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        print("serving.lm_eval: error: lm-eval is not installed; pip install 'jaxinfer[lm-eval]'", file=sys.stderr)
        return 2
    from lm_eval.__main__ import cli_evaluate

    import serving.lm_eval.adapter  # noqa: F401 (registers the model)

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
