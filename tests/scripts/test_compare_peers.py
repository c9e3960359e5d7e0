"""Ratios and tables of the comparison with other programs: medians within rounds, lost rows, what is missing."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as `python scripts/bench/compare_peers.py` has it

from bench import compare_peers, peer_worker
from bench.compare_peers import OURS, OURS_BEST, Contender, Measured, markdown, measure, run_once


def figures(single: float, first: float = 2.0, ready: float = 9.0) -> compare_peers.Figures:
    return {
        "ready": {"ready_seconds": ready, "version": "1.0", "python": "3.12"},
        "single": {"output_tok_s": single},
        "long": {"output_tok_s": single / 2, "first_seconds": first},
        "prefix": {"ratio": 0.1, "cached_seconds": 1.0, "uncached_seconds": 10.0},
    }


PEER = Contender("peer bf16", "vllm", "python", "m", "bfloat16")
FOUND = [
    Contender(OURS, "jaxinfer", "python", "m", "auto"),
    Contender(OURS_BEST, "jaxinfer", "python", "m", "int8", like=False),
    PEER,
    Contender("peer int8", "openvino", "python", "m", "int8", like=False),
]


def measured() -> Measured:
    return Measured(
        {
            OURS: [figures(20), figures(10), figures(30)],
            OURS_BEST: [figures(60), figures(30), figures(90)],
            "peer bf16": [figures(40, first=6.0), figures(10, first=1.0), figures(60, first=3.0)],
            "peer int8": [{}, {}, {}],
        },
        {"peer int8": "it is not here"},
    )


def test_ratios_are_of_one_round_each():
    found = measured()
    assert found.median(OURS, "single") == 20
    assert found.ratio(OURS, "peer bf16", "single") == 0.5  # of 0.5, 1.0 and 0.5; that of the medians agrees by chance
    assert found.ratio(OURS_BEST, "peer bf16", "single") == 1.5
    assert found.ratio(OURS, "peer bf16", "long prompt") == 1.5  # of seconds: 3, 0.5 and 1.5
    assert found.ratio(OURS, "peer int8", "single") is None


def test_table_keeps_what_we_lose_and_says_what_is_missing():
    text = markdown(measured(), FOUND, ["single", "long", "prefix"], 3)
    lines = text.splitlines()
    assert "- peer int8: no figures: it is not here" in lines
    (medians, ratios) = [line for line in lines if line.startswith("| single stream")]
    assert medians == "| single stream: 16 in, 64 out, output tok/s | 20.0 | 60.0 | 40.0 | - |"
    assert ratios == "| single stream: 16 in, 64 out, output tok/s | **0.50** | 1.50 | - |"
    assert "like for like: over peer bf16 | best: over peer bf16 | best: over peer int8" in text
    assert "batch16" not in text
    assert f"Cached over uncached, 32 requests: {OURS} 0.10, {OURS_BEST} 0.10, peer bf16 0.10." in lines
    assert text.startswith("Machine: ")


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    compare_peers.draw(measured(), FOUND, ["single", "long"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_program_prints_before_it_fails_counts(tmp_path):
    """A stand-in for Python prints two lines, one of them no figure, and ends with an error."""
    program = tmp_path / "python"
    line = '{"workload": "single", "output_tok_s": 3.5}'
    program.write_text(f"#!/bin/sh\necho chatter\necho '{line}'\necho 'out of memory' >&2\nexit 3\n")
    program.chmod(0o755)
    peer = Contender("x", "vllm", str(program), "m", "bfloat16")
    assert run_once(peer, ["single"], 0, 10) == ({"single": {"output_tok_s": 3.5}}, "out of memory")
    found = measure([peer], ["single"], 2, 10)
    assert found.values("x", "single") == [3.5, 3.5]
    assert found.failures == {"x": "out of memory"}
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    assert run_once(peer, ["single"], 0, 0.2) == ({}, "not finished within 0.2 s")


@pytest.mark.parametrize("workload", peer_worker.WORKLOADS)
def test_workloads_ask_for_what_they_say(workload):
    count, length, tokens = peer_worker.WORKLOADS[workload]
    asked = []

    def generate(prompts: list[list[int]], most: int) -> int:
        asked.append((prompts, most))
        return len(prompts) * most

    found = peer_worker.measure(generate, workload, random.Random(0))
    assert all(value >= 0 for value in found.values())
    prompts, most = asked[-1]
    assert (len(prompts), {len(prompt) for prompt in prompts}, most) == (count, {length}, tokens)
    assert length + tokens <= peer_worker.CONTEXT
    seen = [tuple(prompt) for group, _ in asked for prompt in group]
    assert len(set(seen)) == len(seen)
    prefixes = {prompt[: peer_worker.SHARED] for prompt in seen}
    assert len(prefixes) == (count + 1 if workload == "prefix" else len(seen))


def test_too_few_tokens_are_an_error():
    with pytest.raises(RuntimeError, match="0 tokens came, not 16 x 64"):
        peer_worker.measure(lambda prompts, tokens: 0, "batch16", random.Random(0))


def test_what_a_program_leaves_behind_does_not_keep_the_others_waiting(tmp_path):
    """Its own processes hold its output open after it has ended; they are ended, too."""
    note = tmp_path / "pid"
    leaves = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(note)!r}, 'w').write(str(child.pid)); print('said')"
    )
    begin = time.monotonic()
    out, error = compare_peers._run([sys.executable, "-c", leaves], dict(os.environ), timeout=60)
    assert (out.strip(), error) == ("said", "")
    assert time.monotonic() - begin < 60
    gone = Path(f"/proc/{note.read_text()}/cmdline")
    for _ in range(200):  # whoever adopts it may take a moment to collect it
        if not gone.exists() or not gone.read_bytes():
            return
        time.sleep(0.02)
    pytest.fail("the program's own process still runs")


def test_a_program_that_does_not_end_is_ended():
    out, error = compare_peers._run(
        [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"], dict(os.environ), timeout=1
    )
    assert (out.strip(), error) == ("begun", "not finished within 1 s")
