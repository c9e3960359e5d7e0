"""The hostile requests of scripts/bench_stalls.py have a size that the servers take, and each is answered."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as `python scripts/bench_stalls.py` has it

from bench_stalls import PROBE_BAR, RATIO_BAR, STALL_BAR, Result, percentile, send
from stalls import model
from stalls.kinds import LIMIT, Kind, kinds
from stalls.started import StallServer

from tests.fakes import FakeOptions

KINDS = [pytest.param(kind, id=kind.name) for kind in kinds(bpe=True)]


def test_a_figure_above_its_bar_is_a_failure() -> None:
    good = Result("kind", 0.001, PROBE_BAR, 1.0, 0.03, RATIO_BAR, STALL_BAR, {"200": 3})
    assert good.passed
    for name in ("probe_p99", "ratio", "stall"):
        bad = Result(**{**{n: getattr(good, n) for n in Result.__dataclass_fields__}, name: getattr(good, name) + 1})
        assert not bad.passed
        assert "FAIL" in str(bad)
    assert percentile([1.0] * 98 + [2.0] * 2, 99) == pytest.approx(2.0, abs=0.02)
    assert percentile([3.0], 99) == 3.0


def test_kinds_have_names_of_their_own() -> None:
    names = [kind.name for kind in kinds(bpe=False)]
    assert len(set(names)) == len(names)
    assert names == [kind.name for kind in kinds(bpe=True)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StallServer]:
    folder = model.write(tmp_path_factory.mktemp("model"), "bpe")
    options = FakeOptions(
        max_num_seqs=2048, max_model_len=model.MAX_MODEL_LEN, num_pages=1 << 24, vocab_size=model.VOCAB_SIZE
    )
    started = StallServer(folder, options, "--served-model-name", "stalls", "--log-level", "error")
    yield started
    started.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_is_taken_or_refused_by_what_it_is(kind: Kind, server: StallServer) -> None:
    sent = kind.make()
    assert len(sent.data) <= LIMIT
    assert asyncio.run(send(server, sent)) in ("200", "400", "413", "OK", "INVALID_ARGUMENT")
    assert server.stalls()["beats"] > 0
