"""Settings and figures of the paired comparison of two settings, and one comparison of the demo with itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as `python scripts/bench/step_pairs.py` has it

from bench.step_pairs import DEFAULTS, interval, read_setting

ROOT = Path(__file__).parents[2]


def test_a_setting_is_the_defaults_and_what_it_names():
    assert read_setting("") == DEFAULTS
    assert read_setting("layers=unrolled,weights=int8") == {**DEFAULTS, "layers": "unrolled", "weights": "int8"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer=loop", "'layer=loop' is no part of a setting; those are layers="),
        ("layers", "'layers' is no part of a setting"),
        ("layers=both", "layers is 'both'; it must be one of loop, unrolled"),
        ("malloc=", "'malloc=' is no part"),
    ],
)
def test_what_is_no_setting_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        read_setting(text)


def test_the_interval_holds_the_median_and_follows_the_spread():
    middle, low, high = interval([0.9, 1.0, 1.1] * 10)
    assert low <= middle == 1.0 <= high
    assert interval([1.0] * 20) == (1.0, 1.0, 1.0)
    wide = interval([0.5, 1.0, 1.5] * 3)
    assert wide[2] - wide[1] > high - low


@pytest.mark.longer
def test_two_sides_of_the_demo():
    command = [sys.executable, "scripts/bench/step_pairs.py", "checkpoints/demo", "--base", "layers=unrolled"]
    command += ["--rows", "2", "--steps", "3", "--pairs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 rows, 2 pairs of 3 steps" in done.stdout
    assert done.stdout.count("new / base") == 3
