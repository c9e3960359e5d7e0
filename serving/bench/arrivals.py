"""When requests arrive: an open loop, whose times are drawn before the first request is sent."""

from __future__ import annotations

import math

import numpy as np


def arrival_times(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> np.ndarray:
    """Seconds from the start at which each of `count` requests is due: (count,) float64, ascending.

    rate: requests per second; infinity sends all of them at once. burstiness: shape of the gamma distribution of the
    gaps: 1 is a Poisson process, less comes in bursts, more is more even, infinity is a fixed gap. The times are
    stretched so that the last one is due at count / rate: the offered rate is `rate` exactly, with few requests, too,
    as in `vllm bench serve`. Raises ValueError for a number that is not above 0.
    """
    if count < 1:
        raise ValueError(f"the number of requests is {count}; it must be at least 1")
    for name, value in (("request rate", rate), ("burstiness", burstiness)):
        if not value > 0:
            raise ValueError(f"{name} is {value:g}; it must be a number above 0, or inf")
    if math.isinf(rate):
        return np.zeros(count)
    if math.isinf(burstiness):
        return np.arange(1, count + 1) / rate
    times = np.cumsum(rng.gamma(burstiness, 1 / (rate * burstiness), count))
    return times * (count / rate / times[-1])
