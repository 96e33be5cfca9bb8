"""The exact test of the mean over two strata."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, bdtri, gammaln, xlog1py, xlogy

__all__ = ["TwoStrata", "last"]

# Shapes the order of outcomes; no promise depends on it, nor on the confidence asked for.
_DEVIATIONS = 1.96
# Of the level of the test, the part spent on a bound for the cold stratum's rate.
_NUISANCE = 0.05
_GRID = 33
_FINE_GRID = 9
_REFINEMENTS = 3
_SMALLEST = 1e-12
# So many standard deviations from its mean a count is less likely than the smallest level.
_NEVER = 9.0


@dataclass(frozen=True)
class TwoStrata:
    """Trials of two strata, and what they say of the mean of the strata's rates.

    Outcomes are ordered by limits that Wilson's limits of both strata give (Zou, Huang and Zhang,
    2009), and the test is exact in that order (Buehler, 1957): it takes the likeliest split of the
    rate between the strata that is compatible with an exact bound of the cold one's (Berger and
    Boos, 1994).

    Attributes
    ----------
    hot_weight:
        The hot stratum's share of the space.
    hot_trials, hot_events, cold_trials, cold_events:
        What trials showed in each stratum.
    """

    hot_weight: float
    hot_trials: int
    hot_events: int
    cold_trials: int
    cold_events: int

    def doubts_of_more(self, rate: float, level: float, stop_at: float = math.inf) -> float:
        """Return how much is lacking to refute, at `level`, that the mean is `rate` or more.

        Where it is found to be more than `stop_at`, it may be more than what is returned.
        """
        allowed = (1 - _NUISANCE) * level
        return self._worst_chance(rate, level, allowed + stop_at, few=True) - allowed

    def doubts_of_less(self, rate: float, level: float, stop_at: float = math.inf) -> float:
        """Return how much is lacking to refute, at `level`, that the mean is `rate` or less."""
        allowed = (1 - _NUISANCE) * level
        return self._worst_chance(rate, level, allowed + stop_at, few=False) - allowed

    def _worst_chance(self, rate: float, level: float, enough: float, *, few: bool) -> float:
        """Return the chance of outcomes as extreme as the one seen, at the worst split.

        Or at one where it is more than `enough`.
        """
        cold = 1 - self.hot_weight
        if level <= _SMALLEST:
            return 1.0
        known = 1.0
        if self.cold_events < self.cold_trials:
            known = float(bdtri(self.cold_events, self.cold_trials, _NUISANCE * level))
        least = max(0.0, (rate - self.hot_weight) / cold)
        most = min(known, rate / cold)
        if least > most:
            return 0.0
        # The worst split is often near an end, where the chance changes fastest.
        places = (1 - np.cos(np.linspace(0, np.pi, _GRID))) / 2
        found = 0.0
        for _ in range(_REFINEMENTS):
            grid = least + (most - least) * places
            chances = self._chance_of_few(rate, grid) if few else self._chance_of_many(rate, grid)
            worst = int(np.argmax(chances))
            found = max(found, float(chances[worst]))
            if found > enough:
                break
            least, most = grid[max(worst - 1, 0)], grid[min(worst + 1, len(grid) - 1)]
            places = np.linspace(0, 1, _FINE_GRID)
        return found

    def _chance_of_few(self, rate: float, cold_rates: NDArray[np.float64]) -> NDArray[np.float64]:
        cold_events, hot_events = self._likely(self._few, cold_rates)
        likely = _chance_of(cold_events, self.cold_trials, cold_rates[:, None])
        hot_rates = self._hot_rates(rate, cold_rates)
        return (likely * bdtr(hot_events, self.hot_trials, hot_rates)).sum(axis=1)

    def _chance_of_many(self, rate: float, cold_rates: NDArray[np.float64]) -> NDArray[np.float64]:
        final = len(self._many[0]) - 1
        cold_events, hot_events = self._likely(self._many, cold_rates)
        likely = _chance_of(cold_events, self.cold_trials, cold_rates[:, None])
        # At least as many are more than one fewer.
        one_fewer = np.clip(hot_events - 1, 0, self.hot_trials)
        more = bdtrc(one_fewer, self.hot_trials, self._hot_rates(rate, cold_rates))
        more = np.where(hot_events <= 0, 1.0, np.where(hot_events > self.hot_trials, 0.0, more))
        chances = (likely * more).sum(axis=1)
        if final < 0:
            return np.ones(len(cold_rates))
        beyond = bdtrc(final, self.cold_trials, cold_rates) if final < self.cold_trials else 0.0
        return np.asarray(chances + beyond)

    def _likely(
        self, outcomes: tuple[NDArray[np.float64], NDArray[np.float64]], rates: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the outcomes but for those so far from what is expected that they never happen."""
        least, most = self.cold_trials * rates.min(), self.cold_trials * rates.max()
        start = max(0, math.floor(least - _NEVER * math.sqrt(least + _NEVER)))
        stop = math.ceil(most + _NEVER * math.sqrt(most + _NEVER)) + 1
        return outcomes[0][start:stop], outcomes[1][start:stop]

    def _hot_rates(self, rate: float, cold_rates: NDArray[np.float64]) -> NDArray[np.float64]:
        rates = (rate - (1 - self.hot_weight) * cold_rates) / self.hot_weight
        return np.clip(rates, 0, 1)[:, None]

    @cached_property
    def _few(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The outcomes that show no more than the one seen: cold events, and the most hot ones."""
        seen = self._limit(self.hot_events, self.cold_events, 1) * (1 + _SMALLEST)
        most = last(lambda cold: self._limit(0, cold, 1) <= seen, self.cold_trials)
        cold_events = np.arange(most + 1.0)
        hot_events = _last_each(
            lambda hot: self._limit(hot, cold_events, 1) <= seen, self.hot_trials, most + 1
        )
        return cold_events, hot_events

    @cached_property
    def _many(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The outcomes that show no less: cold events, and the fewest hot ones.

        More cold events than the last ones show no less with any hot ones.
        """
        seen = self._limit(self.hot_events, self.cold_events, -1) * (1 - _SMALLEST)
        most = last(lambda cold: self._limit(0, cold, -1) < seen, self.cold_trials)
        cold_events = np.arange(most + 1.0)
        hot_events = _last_each(
            lambda hot: self._limit(hot, cold_events, -1) < seen, self.hot_trials, most + 1
        )
        return cold_events, hot_events + 1

    def _limit(self, hot_events: object, cold_events: object, side: int) -> NDArray[np.float64]:
        """Return an approximate limit above (1) or below (-1) the rate that events would show.

        It grows with each of them.
        """
        estimate = np.asarray(0.0)
        square = np.asarray(0.0)
        for events, trials, weight in (
            (np.asarray(hot_events), self.hot_trials, self.hot_weight),
            (np.asarray(cold_events), self.cold_trials, 1 - self.hot_weight),
        ):
            rate = events / trials
            spread = np.sqrt(rate * (1 - rate) * trials + _DEVIATIONS**2 / 4)
            limit = events + _DEVIATIONS**2 / 2 + side * _DEVIATIONS * spread
            limit = limit / (trials + _DEVIATIONS**2)
            estimate = estimate + weight * rate
            square = square + (weight * (limit - rate)) ** 2
        return np.asarray(estimate + side * np.sqrt(square))


def last(holds: Callable[[int], object], most: int) -> int:
    """Return the largest number up to `most` for which something holds, -1 if for none."""
    low, high = -1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _last_each(
    holds: Callable[[NDArray[np.float64]], NDArray[np.bool_]], most: int, count: int
) -> NDArray[np.float64]:
    """Return the same for `count` conditions at once."""
    low, high = np.full(count, -1.0), np.full(count, float(most))
    while (low < high).any():
        middle = np.floor((low + high + 1) / 2)
        held = holds(middle)
        low, high = np.where(held, middle, low), np.where(held, high, middle - 1)
    return low


def _chance_of(
    events: NDArray[np.float64], trials: int, rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    ways = gammaln(trials + 1) - gammaln(events + 1) - gammaln(trials - events + 1)
    return np.asarray(np.exp(ways + xlogy(events, rates) + xlog1py(trials - events, -rates)))
