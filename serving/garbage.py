"""Python's garbage collections stop every thread of a process. Once it is ready they should be short, and rare."""

from __future__ import annotations

import gc
import traceback

# Objects made since the last collection of the youngest; collections until the next older ones go through one, too.
# Python's own are 700 (2,000 from 3.13 on), 10 and 10: with a few large requests alive all that is there is gone
# through every second or so. What requests leave behind has few circles, and is freed without a collection. A middle
# collection goes through what is alive of as many objects as the two multiply to: milliseconds, not tens of them.
_YOUNG, _MIDDLE = 10_000, 5
# What is old is better gone through when nobody waits (`tidy`); after so many collections it is done in any case.
_OLD = 200
_DUE = 2


def settle() -> None:
    """What start-up made lives as long as the process: no later collection looks at it, and there are fewer of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)


def tidy() -> None:
    """Goes through all that was made since `settle`, if that is due. For moments when no request is open, and so little
    is alive: a collection takes time by what it finds alive."""
    if gc.get_count()[2] >= _DUE:
        gc.collect()


def let_go(error: BaseException, *, raised: bool = True) -> None:
    """Frees what the frames hold that an exception, and all that led to it, have left behind.

    raised: it is still on its way; else its frames are forgotten, too, those that are busy and cannot be cleared yet.

    An exception leads to those frames, and often to itself again: gRPC keeps the one that ends a call in the call. So a
    request of megabytes that is refused would stay until a garbage collection, which then frees many in one piece.
    """
    chain = [error]  # may be a ring
    for link in chain:
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = link.__traceback__ if raised else None
        following = (link.__cause__, link.__context__)
        chain += [each for each in following if each is not None and all(each is not known for known in chain)]
