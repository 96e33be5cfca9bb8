"""The rate of a campaign whose first trials decided where the others were drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from scipy.optimize import brentq
from scipy.special import bdtr, bdtrc

from ft2.verdict.interval import lower_bound, upper_bound
from ft2.verdict.melded import Melded
from ft2.verdict.two_strata import TwoStrata, last

__all__ = ["LaterStratum", "TwoStageSample"]

_ROUNDING = 1e-9
_SMALLEST = 1e-12


@dataclass(frozen=True)
class LaterStratum:
    """What the second stage's trials showed in one stratum.

    Attributes
    ----------
    weight:
        Its share of the space.
    trials, events:
        Trials that struck it, however they came to, and the events among them.
    """

    weight: float
    trials: int
    events: int


@dataclass(frozen=True)
class TwoStageSample:
    """Outcomes of uniform trials, and of those drawn from strata when the first had ended.

    The interval is one of an adaptive design (Müller and Schäfer, 2004). The exact binomial test of
    a rate over all planned trials leaves, after the first stage, a conditional level: the
    probability that it would yet reject. Any test of the second stage at that level may take its
    place, whenever the first stage ended and why. Where the sampling stayed uniform that is
    Clopper and Pearson's interval again. For two strata the test is exact (:class:`TwoStrata`).
    For more it is melded (:class:`Melded`), and so is only as good as that: it held in all cases
    that were simulated, but is not proven to.

    Attributes
    ----------
    first_trials, first_events:
        The first stage, drawn uniformly.
    later:
        The second stage, the strata with the most events first; one of weight 1 where the sampling
        stayed uniform.
    """

    first_trials: int
    first_events: int
    later: tuple[LaterStratum, ...]

    @property
    def trials(self) -> int:
        """All trials."""
        return self.first_trials + self._later_trials

    @property
    def events(self) -> int:
        """All events, not weighted."""
        return self.first_events + sum(each.events for each in self.later)

    @property
    def rate(self) -> float:
        """The rate over the space, estimated without bias, in per cent.

        Each stage's own estimate, weighted by its trials.
        """
        if self._is_uniform:
            return 100 * self.events / self.trials
        later = math.fsum(each.weight * each.events / each.trials for each in self.later)
        return 100 * min(1.0, (self.first_events + self._later_trials * later) / self.trials)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return a two-sided interval of the rate, in per cent; it holds :attr:`rate`."""
        one_sided = (1 + confidence) / 2
        return self.lower_bound(one_sided), self.upper_bound(one_sided)

    def upper_bound(self, confidence: float) -> float:
        """Return a one-sided upper bound of the rate, in per cent."""
        if self._is_uniform:
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
        if self._is_uniform:
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
        if self._is_uniform:
            return bool(bdtr(self.events, self.trials, rate) <= level)
        return self._doubts_of_more(level, stop_at=0.0)(rate) <= 0

    def refutes_at_most(self, rate: float, level: float) -> bool:
        """Whether so many events refute, at `level`, that the true share is `rate` or less."""
        if self._is_uniform:
            return bool(self.events > 0 and bdtrc(self.events - 1, self.trials, rate) <= level)
        return self._doubts_of_less(level, stop_at=0.0)(rate) <= 0

    @property
    def _is_uniform(self) -> bool:
        return len(self.later) == 1

    @property
    def _later_trials(self) -> int:
        return sum(each.trials for each in self.later)

    @cached_property
    def _second(self) -> TwoStrata | Melded:
        """The second stage's test."""
        if len(self.later) == 2:
            hot, cold = self.later
            return TwoStrata(hot.weight, hot.trials, hot.events, cold.trials, cold.events)
        return Melded(
            tuple(each.weight for each in self.later),
            tuple(each.trials for each in self.later),
            tuple(each.events for each in self.later),
        )

    def _doubts_of_more(self, level: float, stop_at: float = math.inf) -> Callable[[float], float]:
        """Return how much is lacking to refute a rate or more, as a function of it.

        Where it is found to be more than `stop_at`, it may be more than what is returned.
        """

        def doubts(rate: float) -> float:
            left = _conditional_level(
                self.first_events, self.first_trials, self.trials, rate, level
            )
            return self._second.doubts_of_more(rate, left, stop_at)

        return doubts

    def _doubts_of_less(self, level: float, stop_at: float = math.inf) -> Callable[[float], float]:
        """Return how much is lacking to refute a rate or less, as a function of it."""

        def doubts(rate: float) -> float:
            misses = self.first_trials - self.first_events
            left = _conditional_level(misses, self.first_trials, self.trials, 1 - rate, level)
            return self._second.doubts_of_less(rate, left, stop_at)

        return doubts


def _conditional_level(events: int, first: int, trials: int, rate: float, level: float) -> float:
    """Return the chance that few events among all trials yet refute a rate, given the first ones'.

    Of the randomised binomial test, which has exactly the level asked for.
    """
    few = last(lambda number: bdtr(number, trials, rate) <= level, trials)
    below = float(bdtr(few, trials, rate)) if few >= 0 else 0.0
    unspent = (level - below) / max(float(bdtr(few + 1, trials, rate)) - below, _SMALLEST**2)
    later = trials - first

    def chance(number: int) -> float:
        if number < 0:
            return 0.0
        return 1.0 if number >= later else float(bdtr(number, later, rate))

    less = chance(few - events)
    return less + min(1.0, unspent) * (chance(few + 1 - events) - less)
