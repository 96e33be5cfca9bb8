"""How the trials of a stratified campaign are spent: uniformly, until they show where SDCs are.

No allotment that is fixed beforehand is never wider than uniform sampling: where stratum *h* has
the weight w_h and n_h of N trials, and none shows an SDC, all that is known of the rate is that it
is below max(w_h N / n_h) times what N uniform trials would prove, and that factor is 1 for the
proportional allotment alone. So a campaign begins as a uniform one, and looks at its first trials.
Once SDCs are found, and found in the hot stratum, more trials are drawn from that; a campaign that
never finds them is a uniform one to its end, trial by trial, and so is its interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Allocation", "AllocationRule", "allocation_rule"]

_LOOKS = 32
# Whatever is found later, too few trials are left to gain from.
_LAST_LOOK = 0.7
_LEAST_EVENTS = 3
# Of the trials that uniform sampling would give it, the cold stratum keeps one of these parts.
_KEPT = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
# The interval must be expected to be narrower than that, relative to uniform sampling's.
_WORTH_IT = 0.9
# Few events in the cold stratum are taken for more: those of a rate that a pilot could well hide.
_HIDDEN, _HIDDEN_DEVIATIONS = 0.7, 1.0
_DEVIATIONS = 1.96

Counts = int | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Allocation:
    """Where the trials behind the first ones are drawn from.

    Attributes
    ----------
    first:
        Uniform trials that decided it.
    uniform:
        Uniform trials behind them.
    hot:
        Trials drawn from the hot stratum alone.
    """

    first: int
    uniform: int
    hot: int


@dataclass(frozen=True)
class AllocationRule:
    """Decides, from the first trials of a campaign, where to draw the others from.

    Of some allotments the one whose interval is expected to be the narrowest, if it is expected to
    be clearly narrower than uniform sampling's.

    Parameters
    ----------
    planned:
        Trials of the campaign, however they are drawn.
    stride:
        It looks at multiples of so many trials, and allots such multiples: the number of prompts
        that trials are dealt to in turn, so that each has as many as any other.
    """

    planned: int
    stride: int = 1

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """The numbers of first trials at which it looks, ascending."""
        rounds = (
            math.ceil(self.planned * look / _LOOKS / self.stride) * self.stride
            for look in range(1, _LOOKS)
        )
        return tuple(sorted({each for each in rounds if 0 < each <= _LAST_LOOK * self.planned}))

    @property
    def most_hot(self) -> int:
        """The most trials that it ever allots to the hot stratum."""
        return self._hot(self.planned - self.looks[0], float(_KEPT.min())) if self.looks else 0

    def allot(
        self, weight: float, hot_trials: int, hot_events: int, cold_trials: int, cold_events: int
    ) -> Allocation | None:
        """Return where to draw the other trials from; None: uniformly, as far as is known yet.

        Parameters
        ----------
        weight:
            The hot stratum's share of the space.
        hot_trials, hot_events, cold_trials, cold_events:
            The first trials, all uniform, as many as one of :attr:`looks`.
        """
        first = hot_trials + cold_trials
        kept = float(
            self.kept(
                weight,
                np.asarray(hot_trials),
                np.asarray(hot_events),
                np.asarray(cold_trials),
                np.asarray(cold_events),
            )
        )
        hot = self._hot(self.planned - first, kept)
        return Allocation(first, self.planned - first - hot, hot) if hot else None

    def kept(
        self,
        weight: float,
        hot_trials: NDArray[np.integer[Any]],
        hot_events: NDArray[np.integer[Any]],
        cold_trials: NDArray[np.integer[Any]],
        cold_events: NDArray[np.integer[Any]],
    ) -> NDArray[np.float64]:
        """Return the share of uniform trials among the others, 1 where all of them are to be.

        The arguments are those of :meth:`allot`, or arrays of them.
        """
        first, events = hot_trials + cold_trials, hot_events + cold_events
        usable = (events >= _LEAST_EVENTS) & (hot_trials > 0) & (cold_trials > 0)
        first, hot_trials, cold_trials = (
            np.where(usable, each, self.planned) for each in (first, hot_trials, cold_trials)
        )
        hidden = _HIDDEN + _HIDDEN_DEVIATIONS * np.sqrt(cold_events)
        hot_rate = np.minimum(hot_events / hot_trials, 0.98)
        cold_rate = np.minimum((cold_events + hidden) / cold_trials, 0.98)
        rate = weight * hot_rate + (1 - weight) * cold_rate
        later = self.planned - first
        # As in Müller and Schäfer's test, each stage counts by the root of its trials.
        shares = np.sqrt(first / self.planned), np.sqrt(later / self.planned)
        of_first = _width(rate, first)
        cold = np.maximum(_KEPT * (1 - weight) * later[..., None], 1)
        hot = np.maximum(later[..., None] - cold, 1)
        of_later = _joined_width(weight, hot_rate[..., None], hot, cold_rate[..., None], cold)
        widths = 1 / ((shares[0] / of_first)[..., None] + shares[1][..., None] / of_later)
        best = widths.argmin(axis=-1)
        narrow = widths.min(axis=-1) < _WORTH_IT * _width(rate, np.asarray(self.planned))
        return np.where(usable & narrow, _KEPT[best], 1.0)

    def _hot(self, later: int, kept: float) -> int:
        # Rounded first: 1 - 0.9 is a little less than a tenth.
        return math.floor(round((1 - kept) * later, 6) / self.stride) * self.stride


@lru_cache(maxsize=64)
def allocation_rule(planned: int, stride: int) -> AllocationRule:
    """Return the rule of a campaign, the same one each time."""
    return AllocationRule(planned, stride)


def _limits(
    rate: NDArray[np.float64], trials: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Wilson's limits."""
    square = _DEVIATIONS**2
    centre = (rate * trials + square / 2) / (trials + square)
    half = _DEVIATIONS * np.sqrt(rate * (1 - rate) * trials + square / 4) / (trials + square)
    return centre - half, centre + half


def _width(rate: NDArray[np.float64], trials: NDArray[Any]) -> NDArray[np.float64]:
    low, high = _limits(rate, trials)
    return high - low


def _joined_width(
    weight: float,
    hot_rate: NDArray[np.float64],
    hot: NDArray[Any],
    cold_rate: NDArray[np.float64],
    cold: NDArray[Any],
) -> NDArray[np.float64]:
    hot_low, hot_high = _limits(hot_rate, hot)
    cold_low, cold_high = _limits(cold_rate, cold)
    above = np.hypot(weight * (hot_high - hot_rate), (1 - weight) * (cold_high - cold_rate))
    below = np.hypot(weight * (hot_rate - hot_low), (1 - weight) * (cold_rate - cold_low))
    return above + below
