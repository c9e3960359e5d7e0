"""The ids of a sequence read as one list, and the prompt is there once for all of a request's sequences."""

from __future__ import annotations

import random

import pytest

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.token_ids import TokenIds


def test_reads_as_a_list() -> None:
    rng = random.Random(3)
    for _ in range(300):
        prompt, output = [rng.choices(range(9), k=rng.randrange(6)) for _ in range(2)]
        ids = TokenIds(tuple(prompt))
        for token in output:
            ids.append(token)
        whole = prompt + output
        assert len(ids) == len(whole)
        assert list(ids) == whole
        for _ in range(6):
            start, stop = (rng.choice([None, *range(-8, 14)]) for _ in range(2))
            assert ids[start:stop] == tuple(whole[start:stop])
        for at in range(-len(whole), len(whole)):
            assert ids[at] == whole[at]
        for at in (len(whole), -len(whole) - 1):
            with pytest.raises(IndexError):
                ids[at]


def test_sequences_share_their_prompt() -> None:
    prompt = tuple(range(1000))
    scheduler = Scheduler(SchedulerLimits(8, 64, 2048), PagePool(500, 16))
    scheduler.add(Submit("r", prompt, SamplingParams(n=64, max_tokens=4), 1, 0, 0.0))
    sequences = scheduler._requests["r"].sequences
    assert len(sequences) == 64
    assert {id(sequence.token_ids._prompt) for sequence in sequences} == {id(prompt)}
    sequences[0].token_ids.append(7)
    assert [len(sequence.token_ids) for sequence in sequences[:2]] == [1001, 1000]
