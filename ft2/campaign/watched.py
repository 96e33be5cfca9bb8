"""Which batched trials run again alone, to see whether they end alike."""

from __future__ import annotations

__all__ = ["Watched"]

_LEAST = 5
_ONE_IN = 100


class Watched:
    """Chooses 1 % of a campaign's batched trials, and at least 5, spread over all of them.

    Parameters
    ----------
    planned:
        The campaign's trials.
    may_stop:
        Whether the campaign may end with its first trials: these are chosen, too.
    """

    def __init__(self, planned: int, may_stop: bool = False) -> None:
        self._planned = planned
        self._watched = min(planned, max(_LEAST, -(-planned // _ONE_IN)))
        self._first = _LEAST if may_stop else 0
        self._owed = 0

    def takes(self, trial: int, batched: bool) -> bool:
        """Return whether a trial is to run again; one that was not batched leaves it to the next.

        To be asked of each trial, in their order.
        """
        self._owed += trial < self._first or self._is_due(trial)
        if not batched or not self._owed:
            return False
        self._owed -= 1
        return True

    def _is_due(self, trial: int) -> bool:
        before, behind = (each * self._watched // self._planned for each in (trial - 1, trial))
        return before != behind
