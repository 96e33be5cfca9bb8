"""Few strata hold most SDCs: find them in a pilot, and spend the other trials where they tell most.

The pilot is drawn as every campaign is, uniformly. The strata it finds hot then get more of the
trials that are left than their share of the space. Each estimate is weighted by that share, so what
it estimates stays the same. Whatever the pilot shows, and however badly it chose, the interval
holds: see :class:`TwoStageSample`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, gammaln, xlog1py, xlogy
from scipy.stats import binom

from ft2.verdict.interval import lower_bound, upper_bound

__all__ = ["Allocation", "TwoStageSample", "allocate", "pilot_size"]

_PILOT_SHARE = 8
_LEAST_PILOT_EVENTS = 3
_SPREAD = 2.0
# The cold strata keep half of the trials that uniform sampling would give them, at least.
_LEAST_COLD = 0.5
# A smaller gain than that is not worth the pilot's errors.
_LEAST_GAIN = 1.5
# Of the level of the second stage's test, the part spent on a bound for the cold strata's rate.
_NUISANCE = 0.05
_GRID = 17
_HALVINGS = 34
_ROUNDING = 1e-9


def pilot_size(planned: int) -> int:
    """Return how many of the planned trials are the pilot."""
    return planned // _PILOT_SHARE


@dataclass(frozen=True)
class Allocation:
    """How the trials behind the pilot are spent.

    Attributes
    ----------
    hot:
        Numbers of the strata that get more than their share, ascending; none where the pilot shows
        no gain, and then the sampling stays uniform.
    weight:
        Their share of the space.
    trials:
        How many of the trials they get.
    """

    hot: tuple[int, ...]
    weight: float
    trials: int


def allocate(
    weights: Sequence[float], trials: Sequence[int], events: Sequence[int], later: int
) -> Allocation:
    """Choose the strata to sample more, and how much, from a pilot.

    Of all ways to part the strata by their rates, the one with the least variance under Neyman's
    allocation, trials in proportion to weight times √rate.

    Parameters
    ----------
    weights:
        Each stratum's share of the space; they add up to 1.
    trials, events:
        The pilot's, in each stratum.
    later:
        How many trials there are to spend.
    """
    uniform = Allocation((), 0.0, 0)
    found = sum(events)
    if found < _LEAST_PILOT_EVENTS or later == 0:
        return uniform
    share = np.asarray(weights)
    # Two more events, spread over the space: few events fall apart in strata by chance alone.
    overall = (found + _SPREAD) / sum(trials)
    rates = (np.asarray(events) + _SPREAD * share) / (
        np.asarray(trials) + _SPREAD * share / overall
    )
    order = np.lexsort((np.arange(len(share)), -rates))
    weight = np.cumsum(share[order])[:-1]
    mass = np.cumsum((share * rates)[order])
    hot, cold = np.sqrt(weight * mass[:-1]), np.sqrt((1 - weight) * (mass[-1] - mass[:-1]))
    if not weight.size:
        return uniform
    spent = np.minimum(hot / (hot + cold), 1 - _LEAST_COLD * (1 - weight))
    with np.errstate(divide="ignore"):
        variance = hot**2 / spent + cold**2 / (1 - spent)
    best = int(np.argmin(variance))
    if mass[-1] < _LEAST_GAIN * variance[best] or spent[best] <= weight[best]:
        return uniform
    chosen = tuple(sorted(int(number) for number in order[: best + 1]))
    return Allocation(chosen, float(weight[best]), math.floor(later * float(spent[best])))


@dataclass(frozen=True)
class TwoStageSample:
    """Outcomes of a pilot and of the trials that it allotted.

    The interval is one of an adaptive design (Müller and Schäfer, 2004). The exact binomial test of
    a rate over all planned trials leaves, after the pilot, a conditional level: the probability
    that it would yet reject. Any test of the second stage at that level may take its place. Where
    the sampling stayed uniform that is Clopper and Pearson's interval again; else it is a test of
    the weighted sum of two binomial counts, at the worst split of the rate between hot and cold
    strata that is compatible with the cold ones' exact bound (Berger and Boos, 1994).

    Attributes
    ----------
    pilot_trials, pilot_events:
        The uniform trials, and the events among them; 0 where the strata were chosen beforehand.
    hot_weight:
        The hot strata's share of the space; 0 where the sampling stayed uniform.
    hot_trials, hot_events, cold_trials, cold_events:
        The second stage.
    """

    pilot_trials: int
    pilot_events: int
    hot_weight: float
    hot_trials: int
    hot_events: int
    cold_trials: int
    cold_events: int

    @property
    def trials(self) -> int:
        """All trials."""
        return self.pilot_trials + self._second_trials

    @property
    def events(self) -> int:
        """All events, not weighted."""
        return self.pilot_events + self.hot_events + self.cold_events

    @property
    def rate(self) -> float:
        """The rate over the space, estimated without bias, in per cent.

        Each stage's own estimate, weighted by its trials.
        """
        second = self._hot_unit * self.hot_events + self._cold_unit * self.cold_events
        total = self.pilot_events + self._second_trials * second
        return 100 * min(1.0, total / self.trials)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return a two-sided interval of the rate, in per cent."""
        one_sided = (1 + confidence) / 2
        return self.lower_bound(one_sided), self.upper_bound(one_sided)

    def upper_bound(self, confidence: float) -> float:
        """Return a one-sided upper bound of the rate, in per cent."""
        if not self.hot_trials:
            return upper_bound(self.events, self.trials, confidence)
        low, high = self.rate / 100, 1.0
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high) if high > 4 * low > 0 else (low + high) / 2
            refuted = self.refutes_at_least(middle, 1 - confidence)
            low, high = (low, middle) if refuted else (middle, high)
        return 100 * high

    def lower_bound(self, confidence: float) -> float:
        """Return a one-sided lower bound of the rate, in per cent."""
        if not self.hot_trials:
            return lower_bound(self.events, self.trials, confidence)
        low, high = 0.0, self.rate / 100
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            refuted = self.refutes_at_most(middle, 1 - confidence)
            low, high = (middle, high) if refuted else (low, middle)
        return 100 * low

    def refutes_at_least(self, rate: float, level: float) -> bool:
        """Whether so few events refute, at `level`, that the true share is `rate` or more."""
        if not self.hot_trials:
            return bool(binom.cdf(self.events, self.trials, rate) <= level)
        left = _conditional_level(self.pilot_events, self.pilot_trials, self.trials, rate, level)
        return self._worst_chance(rate, left, few=True) <= (1 - _NUISANCE) * left

    def refutes_at_most(self, rate: float, level: float) -> bool:
        """Whether so many events refute, at `level`, that the true share is `rate` or less."""
        if not self.hot_trials:
            return bool(binom.sf(self.events - 1, self.trials, rate) <= level)
        misses = self.pilot_trials - self.pilot_events
        left = _conditional_level(misses, self.pilot_trials, self.trials, 1 - rate, level)
        return self._worst_chance(rate, left, few=False) <= (1 - _NUISANCE) * left

    @property
    def _second_trials(self) -> int:
        return self.hot_trials + self.cold_trials

    @property
    def _hot_unit(self) -> float:
        return self.hot_weight / self.hot_trials if self.hot_trials else 0.0

    @property
    def _cold_unit(self) -> float:
        return (1 - self.hot_weight) / self.cold_trials if self.cold_trials else 0.0

    def _worst_chance(self, rate: float, left: float, *, few: bool) -> float:
        """Return the chance of a weighted sum as small (or large) as the one seen, at the worst."""
        cold = 1 - self.hot_weight
        if left <= 0:
            return 1.0
        known = upper_bound(self.cold_events, self.cold_trials, 1 - _NUISANCE * left) / 100
        least = max(0.0, (rate - self.hot_weight) / cold)
        most = min(known, rate / cold)
        if least > most:
            return 0.0
        chances = np.zeros(0)
        for _ in range(2):
            grid = np.linspace(least, most, _GRID)
            chances = self._chances(rate, grid, few=few)
            worst = int(np.argmax(chances))
            least, most = grid[max(worst - 1, 0)], grid[min(worst + 1, _GRID - 1)]
        return float(chances.max())

    def _chances(
        self, rate: float, cold_rates: NDArray[np.float64], *, few: bool
    ) -> NDArray[np.float64]:
        hot_rates = np.clip((rate - (1 - self.hot_weight) * cold_rates) / self.hot_weight, 0, 1)
        seen = self._hot_unit * self.hot_events + self._cold_unit * self.cold_events
        most = min(self.cold_trials, math.floor(seen / self._cold_unit * (1 + _ROUNDING)))
        cold_events = np.arange(most + 1)
        room = (seen - self._cold_unit * cold_events) / self._hot_unit
        cold_rates, hot_rates = cold_rates[:, None], hot_rates[:, None]
        likely = _chance_of(cold_events, self.cold_trials, cold_rates)
        # Sums that are the same but for rounding are the same.
        slack = _ROUNDING * (1 + np.abs(room))
        if few:
            hot_events = np.minimum(np.floor(room + slack), self.hot_trials)
            return (likely * bdtr(hot_events, self.hot_trials, hot_rates)).sum(axis=1)
        hot_events = np.ceil(room - slack) - 1
        more = bdtrc(np.clip(hot_events, 0, self.hot_trials), self.hot_trials, hot_rates)
        more = np.where(hot_events < 0, 1.0, np.where(hot_events >= self.hot_trials, 0.0, more))
        beyond = bdtrc(most, self.cold_trials, cold_rates[:, 0]) if most < self.cold_trials else 0.0
        return (likely * more).sum(axis=1) + beyond


def _conditional_level(events: int, pilot: int, trials: int, rate: float, level: float) -> float:
    """Return the chance that few events among all trials yet refute a rate, given the pilot's.

    Of the randomised binomial test, which has exactly the level asked for.
    """
    few = int(binom.ppf(level, trials, rate))
    few -= int(binom.cdf(few, trials, rate) > level)
    unspent = (level - binom.cdf(few, trials, rate)) / binom.pmf(few + 1, trials, rate)
    later = trials - pilot
    chance = binom.cdf(few - events, later, rate)
    chance += min(1.0, unspent) * binom.pmf(few + 1 - events, later, rate)
    return float(chance)


def _chance_of(
    events: NDArray[np.int64], trials: int, rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    ways = gammaln(trials + 1) - gammaln(events + 1) - gammaln(trials - events + 1)
    return np.exp(ways + xlogy(events, rates) + xlog1py(trials - events, -rates))
