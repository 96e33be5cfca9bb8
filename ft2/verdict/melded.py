"""Bounds of the mean over any number of strata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import betainc, betaincinv

__all__ = ["Melded"]

_GRID = 16_384
# Of each stratum's distribution so much is beyond either end of its grid.
_BEYOND = 1e-12


@dataclass(frozen=True)
class Melded:
    """Trials of strata, and what they say of the mean of the strata's rates.

    The bounds are the quantiles of a weighted sum of independent beta distributions, one for each
    stratum, as where confidence distributions are melded (Fay, Proschan and Brittain, 2015). For
    the lower bound they are those of Clopper and Pearson's lower bounds. For the upper one they
    have the observed rates as their means, and one more event is added where it weighs most, spread
    exponentially: what Fay and Feuer (1997) do where counts are Poisson's, so that many strata cost
    no more than one does. Neither is proven to be as good as it promises. Both held in all cases
    simulated, and in all outcomes of three small strata.

    Sums are of values rounded to a grid, away from where they would refute, so that rounding never
    makes a bound closer.

    Attributes
    ----------
    weights:
        The strata's shares of the space.
    trials, events:
        What trials showed in each.
    """

    weights: tuple[float, ...]
    trials: tuple[int, ...]
    events: tuple[int, ...]

    def doubts_of_more(self, rate: float, level: float, stop_at: float = math.inf) -> float:
        """Return how much is lacking to refute, at `level`, that the mean is `rate` or more."""
        return self._most_misses.chance_up_to(sum(self.weights) - rate) - level

    def doubts_of_less(self, rate: float, level: float, stop_at: float = math.inf) -> float:
        """Return how much is lacking to refute, at `level`, that the mean is `rate` or less."""
        return self._least_hits.chance_up_to(rate) - level

    @cached_property
    def _least_hits(self) -> _Sum:
        strata = zip(self.weights, self.trials, self.events, strict=True)
        return _Sum.of([_Beta(weight, hits, n - hits + 1) for weight, n, hits in strata])

    @cached_property
    def _most_misses(self) -> _Sum:
        strata = [*zip(self.weights, self.trials, self.events, strict=True)]
        one_more = _OneMore(max(weight / n for weight, n, _ in strata))
        return _Sum.of([one_more, *(_Beta(weight, n - hits, hits) for weight, n, hits in strata)])


@dataclass(frozen=True)
class _Beta:
    """A beta distribution times a weight; without events all of it is at 0, without misses at 1."""

    weight: float
    events: int
    misses: int

    @property
    def ends(self) -> tuple[float, float]:
        """Between which values almost all of it is."""
        if not self.events:
            return 0.0, 0.0
        if not self.misses:
            return self.weight, self.weight
        low = float(betaincinv(self.events, self.misses, _BEYOND))
        high = 1 - float(betaincinv(self.misses, self.events, _BEYOND))
        return self.weight * low, self.weight * high

    def below(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the chances to be no more than `values`."""
        shares = np.minimum(values / self.weight, 1.0)
        return np.asarray(betainc(self.events, self.misses, shares))


@dataclass(frozen=True)
class _OneMore:
    """Less than 0 by an exponential distribution.

    Attributes
    ----------
    mean:
        By how much on average.
    """

    mean: float

    @property
    def ends(self) -> tuple[float, float]:
        """Between which values almost all of it is."""
        return self.mean * math.log(_BEYOND), 0.0

    def below(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the chances to be no more than `values`."""
        return np.asarray(np.exp(np.minimum(values / self.mean, 0.0)))


@dataclass(frozen=True)
class _Sum:
    """The distribution of a sum, too low rather than too high.

    Attributes
    ----------
    start, step:
        The grid.
    chances:
        Of each of its points the chance to be no higher, never too small.
    beyond:
        The chance of what is not on the grid.
    """

    start: float
    step: float
    chances: NDArray[np.float64]
    beyond: float

    @classmethod
    def of(cls, parts: Sequence[_Beta | _OneMore]) -> _Sum:
        spans = [high - low for low, high in (part.ends for part in parts)]
        step = sum(spans) / _GRID
        counts = [math.ceil(span / step) if span else 0 for span in spans]
        size = sum(counts) + 1
        fast = next_fast_len(size, real=True)
        product = np.ones(1, dtype=complex)
        for part, count in zip(parts, counts, strict=True):
            product = product * rfft(_masses(part, count, step), fast)
        masses = irfft(product, fast)[:size]
        beyond = 2 * _BEYOND * len(parts)
        start = sum(part.ends[0] for part in parts)
        return cls(start, step, np.cumsum(np.maximum(masses, 0)) + beyond, beyond)

    def chance_up_to(self, value: float) -> float:
        """Return the chance to be `value` or less, or a little more than that."""
        if value < self.start:
            return self.beyond
        if not self.step:
            return 1.0
        # A line between two points is nowhere below the step that is there.
        at = (value - self.start) / self.step
        return min(1.0, float(np.interp(at, np.arange(len(self.chances)), self.chances)))


def _masses(part: _Beta | _OneMore, count: int, step: float) -> NDArray[np.float64]:
    """Return the chances of the points of a part's grid, each with what is up to the next."""
    if not count:
        return np.ones(1)
    below = part.below(part.ends[0] + step * np.arange(count + 1))
    return np.diff(below, append=1.0)
