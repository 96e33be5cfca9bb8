"""The rate of a campaign whose first trials decided where the others were drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, bdtrc, bdtri, gammaln, xlog1py, xlogy

from ft2.verdict.interval import lower_bound, upper_bound

__all__ = ["TwoStageSample"]

# Shapes the order of outcomes; no promise depends on it, nor on the confidence asked for.
_DEVIATIONS = 1.96
# Of the level of the second stage's test, the part spent on a bound for the cold stratum's rate.
_NUISANCE = 0.05
_GRID = 33
_FINE_GRID = 9
_REFINEMENTS = 3
_ROUNDING = 1e-9
_SMALLEST = 1e-12
# So many standard deviations from its mean a count is less likely than the smallest level.
_NEVER = 9.0


@dataclass(frozen=True)
class TwoStageSample:
    """Outcomes of uniform trials, and of those drawn from two strata when the first had ended.

    The interval is one of an adaptive design (Müller and Schäfer, 2004). The exact binomial test of
    a rate over all planned trials leaves, after the first stage, a conditional level: the
    probability that it would yet reject. Any test of the second stage at that level may take its
    place, whenever the first stage ended and why. Where the sampling stayed uniform that is
    Clopper and Pearson's interval again. Else outcomes of the second stage are ordered by limits
    that Wilson's limits of both strata give (Zou, Huang and Zhang, 2009), and the test is exact in
    that order (Buehler, 1957): it takes the likeliest split of the rate between the strata that is
    compatible with an exact bound of the cold one's (Berger and Boos, 1994).

    Attributes
    ----------
    first_trials, first_events:
        The first stage, drawn uniformly.
    hot_weight:
        The hot stratum's share of the space; any where the sampling stayed uniform.
    hot_trials, hot_events, cold_trials, cold_events:
        The second stage; no hot ones where the sampling stayed uniform.
    """

    first_trials: int
    first_events: int
    hot_weight: float
    hot_trials: int
    hot_events: int
    cold_trials: int
    cold_events: int

    @property
    def trials(self) -> int:
        """All trials."""
        return self.first_trials + self._later_trials

    @property
    def events(self) -> int:
        """All events, not weighted."""
        return self.first_events + self.hot_events + self.cold_events

    @property
    def rate(self) -> float:
        """The rate over the space, estimated without bias, in per cent.

        Each stage's own estimate, weighted by its trials.
        """
        if not self.hot_trials:
            return 100 * self.events / self.trials
        later = self.hot_weight * self.hot_events / self.hot_trials
        later += (1 - self.hot_weight) * self.cold_events / self.cold_trials
        return 100 * min(1.0, (self.first_events + self._later_trials * later) / self.trials)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return a two-sided interval of the rate, in per cent; it holds :attr:`rate`."""
        one_sided = (1 + confidence) / 2
        return self.lower_bound(one_sided), self.upper_bound(one_sided)

    def upper_bound(self, confidence: float) -> float:
        """Return a one-sided upper bound of the rate, in per cent."""
        if not self.hot_trials:
            return upper_bound(self.events, self.trials, confidence)
        doubts = self._doubts_of_more(1 - confidence)
        low, high = max(self.rate / 100, _SMALLEST), 1 - _SMALLEST
        if doubts(low) <= 0:
            return 100 * low
        if doubts(high) > 0:
            return 100.0
        near = min(high, 2 * low + 8 / self.trials)
        while doubts(near) > 0:
            low, near = near, min(high, 2 * near)
        return 100 * float(brentq(doubts, low, near, xtol=_ROUNDING, rtol=_ROUNDING))

    def lower_bound(self, confidence: float) -> float:
        """Return a one-sided lower bound of the rate, in per cent."""
        if not self.hot_trials:
            return lower_bound(self.events, self.trials, confidence)
        doubts = self._doubts_of_less(1 - confidence)
        low, high = _SMALLEST, min(self.rate / 100, 1 - _SMALLEST)
        if high <= low or doubts(low) > 0:
            return 0.0
        if doubts(high) <= 0:
            return 100 * high
        return 100 * float(brentq(doubts, low, high, xtol=_ROUNDING, rtol=_ROUNDING))

    def refutes_at_least(self, rate: float, level: float) -> bool:
        """Whether so few events refute, at `level`, that the true share is `rate` or more."""
        if not self.hot_trials:
            return bool(bdtr(self.events, self.trials, rate) <= level)
        return self._doubts_of_more(level, stop_at=0.0)(rate) <= 0

    def refutes_at_most(self, rate: float, level: float) -> bool:
        """Whether so many events refute, at `level`, that the true share is `rate` or less."""
        if not self.hot_trials:
            return bool(self.events > 0 and bdtrc(self.events - 1, self.trials, rate) <= level)
        return self._doubts_of_less(level, stop_at=0.0)(rate) <= 0

    @property
    def _later_trials(self) -> int:
        return self.hot_trials + self.cold_trials

    def _doubts_of_more(self, level: float, stop_at: float = math.inf) -> Callable[[float], float]:
        """Return how much is lacking to refute a rate or more, as a function of it.

        Where it is found to be more than `stop_at`, it may be more than what is returned.
        """

        def doubts(rate: float) -> float:
            left = _conditional_level(
                self.first_events, self.first_trials, self.trials, rate, level
            )
            allowed = (1 - _NUISANCE) * left
            return self._worst_chance(rate, left, allowed + stop_at, few=True) - allowed

        return doubts

    def _doubts_of_less(self, level: float, stop_at: float = math.inf) -> Callable[[float], float]:
        """Return how much is lacking to refute a rate or less, as a function of it."""

        def doubts(rate: float) -> float:
            misses = self.first_trials - self.first_events
            left = _conditional_level(misses, self.first_trials, self.trials, 1 - rate, level)
            allowed = (1 - _NUISANCE) * left
            return self._worst_chance(rate, left, allowed + stop_at, few=False) - allowed

        return doubts

    def _worst_chance(self, rate: float, left: float, enough: float, *, few: bool) -> float:
        """Return the chance of outcomes as extreme as the one seen, at the worst split.

        Or at one where it is more than `enough`.
        """
        cold = 1 - self.hot_weight
        if left <= _SMALLEST:
            return 1.0
        known = 1.0
        if self.cold_events < self.cold_trials:
            known = float(bdtri(self.cold_events, self.cold_trials, _NUISANCE * left))
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
        last = len(self._many[0]) - 1
        cold_events, hot_events = self._likely(self._many, cold_rates)
        likely = _chance_of(cold_events, self.cold_trials, cold_rates[:, None])
        # At least as many are more than one fewer.
        one_fewer = np.clip(hot_events - 1, 0, self.hot_trials)
        more = bdtrc(one_fewer, self.hot_trials, self._hot_rates(rate, cold_rates))
        more = np.where(hot_events <= 0, 1.0, np.where(hot_events > self.hot_trials, 0.0, more))
        chances = (likely * more).sum(axis=1)
        if last < 0:
            return np.ones(len(cold_rates))
        beyond = bdtrc(last, self.cold_trials, cold_rates) if last < self.cold_trials else 0.0
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
        most = _last(lambda cold: self._limit(0, cold, 1) <= seen, self.cold_trials)
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
        most = _last(lambda cold: self._limit(0, cold, -1) < seen, self.cold_trials)
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


def _last(holds: Callable[[int], object], most: int) -> int:
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


def _conditional_level(events: int, first: int, trials: int, rate: float, level: float) -> float:
    """Return the chance that few events among all trials yet refute a rate, given the first ones'.

    Of the randomised binomial test, which has exactly the level asked for.
    """
    few = _last(lambda number: bdtr(number, trials, rate) <= level, trials)
    below = float(bdtr(few, trials, rate)) if few >= 0 else 0.0
    unspent = (level - below) / max(float(bdtr(few + 1, trials, rate)) - below, _SMALLEST**2)
    later = trials - first

    def chance(number: int) -> float:
        if number < 0:
            return 0.0
        return 1.0 if number >= later else float(bdtr(number, later, rate))

    less = chance(few - events)
    return less + min(1.0, unspent) * (chance(few + 1 - events) - less)


def _chance_of(
    events: NDArray[np.float64], trials: int, rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    ways = gammaln(trials + 1) - gammaln(events + 1) - gammaln(trials - events + 1)
    return np.asarray(np.exp(ways + xlogy(events, rates) + xlog1py(trials - events, -rates)))
