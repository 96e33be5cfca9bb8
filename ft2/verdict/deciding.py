"""How many trials would decide what those seen did not."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["trials_that_decide"]

_MOST_TRIALS = 1 << 40


def trials_that_decide(decides: Callable[[int], bool], seen: int) -> int | None:
    """Return how many trials would decide, if more than those seen do.

    Parameters
    ----------
    decides:
        Whether so many trials would decide, their events as frequent as those seen; from some
        number on it is true.
    seen:
        How many did not.

    Returns
    -------
    int or None
        None where no number does that anybody could run.
    """
    low, high = seen, 2 * seen
    while not decides(high):
        low, high = high, 2 * high
        if high > _MOST_TRIALS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
