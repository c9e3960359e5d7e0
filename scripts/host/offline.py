"""`LLM.generate` over the pretended device, in a process of its own.

python -m scripts.host.offline OPTIONS FOLDER TOKENS
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .device import HostOptions


def main(argv: list[str]) -> int:
    from jaxinfer import llm

    options, folder, tokens = HostOptions(**json.loads(argv[0])), argv[1], int(argv[2])

    def build(_model: Any, _runtime: Any) -> Any:
        return options.build(lambda _progress: None)

    llm.build_engine = build  # type: ignore[assignment]
    params = llm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    with llm.LLM(folder) as engine:
        results = engine.generate(["once"] * options.rows, params)
    assert all(len(result.outputs[0].token_ids) == tokens for result in results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
