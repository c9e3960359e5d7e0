"""Python's garbage collections stop every thread of a process. Once it is ready they should be short, and rare."""

from __future__ import annotations

import gc
import traceback

# Objects made since the last collection of the youngest; collections until the next older ones go through one, too.
# Python's own are 700 (2,000 from 3.13 on), 10 and 10: with a few large requests alive all that is there is looked at
# every second or so. What requests leave behind has few circles, and is freed without a collection.
_THRESHOLDS = (10_000, 20, 100)


def settle() -> None:
    """What start-up made lives as long as the process: no later collection looks at it, and there are fewer of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def let_go(error: BaseException) -> None:
    """Frees what the frames hold that an exception, and all that led to it, have left behind.

    An exception leads to those frames, and often to itself again: gRPC keeps the one that ends a call in the call. So a
    request of megabytes that is refused would stay until a garbage collection, which then frees many in one piece.
    """
    chain = [error]  # may be a ring
    for link in chain:
        traceback.clear_frames(link.__traceback__)
        following = (link.__cause__, link.__context__)
        chain += [each for each in following if each is not None and all(each is not known for known in chain)]
