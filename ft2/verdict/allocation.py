"""How the trials of a stratified campaign are spent: uniformly, until they show where SDCs are.

No allotment that is fixed beforehand is never wider than uniform sampling: where stratum *h* has
the weight w_h and n_h of N trials, and none shows an SDC, all that is known of the rate is that it
is below max(w_h N / n_h) times what N uniform trials would prove, and that factor is 1 for the
proportional allotment alone. So a campaign begins as a uniform one, and looks at its first trials.
Once SDCs are found, they show how to part the space, and more trials are drawn where SDCs are; a
campaign that never finds them is a uniform one to its end, trial by trial, and so is its interval.

The space is parted in one of two ways: into faults that flip the highest exponent bit and all
others, which needs no learning, or by the chance of an SDC that a score
(:func:`ft2.verdict.score.learned_chances`) learned from the first trials gives each cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ft2.verdict.cells import Cell, Strata
from ft2.verdict.score import cell_features, learned_chances

__all__ = ["POOL", "Allocation", "AllocationRule", "strata_by_top_bit"]

POOL = 8
"""For each planned trial so many others are drawn uniformly, to take those of a stratum from."""

_BY_TOP_BIT = "top-exponent-bit", "other-bits"

_LOOKS = 8
# Whatever is found later, too few trials are left to gain from.
_LAST_LOOK = 0.7
_LEAST_EVENTS = 3
# With fewer there is too little to learn a score from.
_LEAST_LEARNED = 12
_LEARNED = 5
_FOLDS = 5
# Of the trials that uniform sampling would give it, a stratum keeps one of these parts at least.
_KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# A stratum must be expected to have so many trials, or it might have none.
_LEAST_DRAWN = 20
# The interval must be expected to be narrower than that, relative to uniform sampling's.
_WORTH_IT = 0.9
# Few events in a stratum are taken for more: those of a rate that a pilot could well hide.
_HIDDEN, _HIDDEN_DEVIATIONS = 0.7, 1.0
_DEVIATIONS = 1.96
# As many standard deviations as a stratum's candidates may be fewer than expected.
_SHORT = 6.0

Seen = Sequence[tuple[Cell, bool]]
"""Trials in their order: of each its cell, and whether it was an SDC."""


@dataclass(frozen=True)
class Allocation:
    """Where the trials behind the first ones are drawn from.

    Attributes
    ----------
    first:
        Uniform trials that decided it.
    uniform:
        Uniform trials behind them.
    more:
        Trials drawn from each stratum alone.
    strata:
        How the space is parted.
    """

    first: int
    uniform: int
    more: tuple[int, ...]
    strata: Strata


@dataclass(frozen=True)
class _Way:
    """A way to part the space.

    Attributes
    ----------
    trials, events:
        What the first trials showed in each stratum, shape (strata,); of a score, those that it
        was not learned from.
    """

    strata: Strata
    trials: NDArray[np.float64]
    events: NDArray[np.float64]


@dataclass(frozen=True)
class AllocationRule:
    """Decides, from the first trials of a campaign, where to draw the others from.

    Of some strata and some allotments the ones whose interval is expected to be the narrowest, if
    it is expected to be clearly narrower than uniform sampling's.

    Parameters
    ----------
    planned:
        Trials of the campaign, however they are drawn.
    stride:
        It looks at multiples of so many trials: the number of prompts that trials are dealt to in
        turn, so that each has had as many as any other.
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
    def most_more(self) -> int:
        """The most trials that it ever draws from strata alone."""
        return math.ceil((1 - min(_KEPT)) * self.planned) if self.looks else 0

    def allot(self, masses: Mapping[Cell, float], seen: Seen) -> Allocation | None:
        """Return where to draw the other trials from; None: uniformly, as far as is known yet.

        Parameters
        ----------
        masses:
            The cells' shares of the space; they add up to 1, and hold each cell of `seen`.
        seen:
            The first trials, all uniform, as many as one of :attr:`looks`.
        """
        if sum(is_event for _, is_event in seen) < _LEAST_EVENTS:
            return None
        first, later = len(seen), self.planned - len(seen)
        # As in Müller and Schäfer's test, each stage counts by the root of its trials.
        of_first, of_later = math.sqrt(first / self.planned), math.sqrt(later / self.planned)
        found: tuple[float, Allocation] | None = None
        for way in self._ways(masses, seen):
            weights = np.array(way.strata.weights)
            hidden = _HIDDEN + _HIDDEN_DEVIATIONS * np.sqrt(way.events)
            # Those hidden in the stratum with the most SDCs do no harm.
            hidden[0] = 0.0
            rates = np.minimum((way.events + hidden) / way.trials, 0.98)
            rate = float(weights @ rates)
            ideal = weights * np.sqrt(rates * (1 - rates))
            ideal /= ideal.sum()
            width_of_first, width_of_uniform = (
                _width(np.ones(1), np.array([rate]), np.array([float(trials)]))
                for trials in (first, self.planned)
            )
            for kept in _KEPT:
                uniform, more = self._draws(weights, ideal, later, kept)
                drawn = np.asarray(uniform * weights + more, dtype=float)
                if drawn.min() < _LEAST_DRAWN:
                    continue
                width = 1 / (of_first / width_of_first + of_later / _width(weights, rates, drawn))
                share = width / width_of_uniform
                if share < min(_WORTH_IT, found[0] if found else 1.0):
                    more_drawn = tuple(map(int, more))
                    found = share, Allocation(first, uniform, more_drawn, way.strata)
        return None if found is None else found[1]

    def _draws(
        self, weights: NDArray[np.float64], ideal: NDArray[np.float64], later: int, kept: float
    ) -> tuple[int, NDArray[np.int64]]:
        """Return how many trials to draw uniformly, in whole rounds, and from each stratum."""
        drawn = later * (kept * weights + (1 - kept) * ideal)
        candidates = POOL * self.planned * weights
        most = np.maximum(candidates - _SHORT * np.sqrt(candidates), 0)
        more = np.minimum(drawn - (drawn / weights).min() * weights, most).astype(np.int64)
        uniform = int(later - more.sum()) // self.stride * self.stride
        more[np.argmax(weights)] += later - more.sum() - uniform
        return uniform, more

    def _ways(self, masses: Mapping[Cell, float], seen: Seen) -> Iterator[_Way]:
        places = {cell: place for place, cell in enumerate(masses)}
        struck = np.array([places[cell] for cell, _ in seen])
        # Whole rounds of prompts take turns to be left out.
        folds = np.arange(len(seen)) // self.stride % _FOLDS
        shape = _FOLDS, len(masses)
        spots = folds * len(masses) + struck
        wrong = np.array([is_event for _, is_event in seen], dtype=float)
        trials = np.bincount(spots, minlength=math.prod(shape)).astype(float).reshape(shape)
        events = np.bincount(spots, wrong, math.prod(shape)).astype(float).reshape(shape)
        by_top = strata_by_top_bit(masses)
        numbers = np.array([by_top.numbers[cell] for cell in masses])
        ways = [_way(by_top, [numbers] * _FOLDS, trials, events)]
        if wrong.sum() >= _LEAST_LEARNED:
            ways.append(_by_score(masses, trials, events))
        for way in ways:
            if way.trials.all() and min(way.strata.weights) > 0:
                yield way


def strata_by_top_bit(masses: Mapping[Cell, float]) -> Strata:
    """Part the space into faults that flip the highest exponent bit, and all others.

    Parameters
    ----------
    masses:
        The cells' shares of the space.
    """
    return Strata.of(masses, {cell: int(not cell.top) for cell in masses}, _BY_TOP_BIT)


def _by_score(
    masses: Mapping[Cell, float], trials: NDArray[np.float64], events: NDArray[np.float64]
) -> _Way:
    """Part the space by the chance of an SDC, and judge that by the trials that taught it nothing.

    Parameters
    ----------
    trials, events:
        What was seen in each cell, shape (folds, cells).
    """
    shares, features = np.array([*masses.values()]), cell_features([*masses])

    def numbers(trials: NDArray[np.float64], events: NDArray[np.float64]) -> NDArray[np.int64]:
        return _alike(shares, learned_chances(features, trials, events))

    of_folds = [
        numbers(trials.sum(axis=0) - trials[fold], events.sum(axis=0) - events[fold])
        for fold in range(_FOLDS)
    ]
    learned = numbers(trials.sum(axis=0), events.sum(axis=0)).tolist()
    names = tuple(f"score-{number + 1}-of-{_LEARNED}" for number in range(_LEARNED))
    strata = Strata.of(masses, dict(zip(masses, learned, strict=True)), names)
    return _way(strata, of_folds, trials, events)


def _alike(shares: NDArray[np.float64], chances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return of each cell its stratum, so that all strata ask for as many trials.

    That is so where the sums of the roots of the chances are alike (Dalenius and Hodges, 1959).
    """
    order = np.argsort(-chances, kind="stable")
    asked = shares[order] * np.sqrt(chances[order])
    below = np.cumsum(asked) - asked / 2
    numbers = np.zeros(len(shares), dtype=np.int64)
    numbers[order] = np.minimum(below / asked.sum() * _LEARNED, _LEARNED - 1)
    return numbers


def _way(
    strata: Strata,
    of_folds: Sequence[NDArray[np.int64]],
    trials: NDArray[np.float64],
    events: NDArray[np.float64],
) -> _Way:
    count = len(strata.names)
    each = [*zip(of_folds, trials, events, strict=True)]
    return _Way(
        strata,
        np.sum([np.bincount(numbers, seen, count) for numbers, seen, _ in each], axis=0),
        np.sum([np.bincount(numbers, wrong, count) for numbers, _, wrong in each], axis=0),
    )


def _width(
    weights: NDArray[np.float64], rates: NDArray[np.float64], trials: NDArray[np.float64]
) -> float:
    """Return the width that Wilson's limits of strata give their mean (Zou, Huang, Zhang, 2009)."""
    square = _DEVIATIONS**2
    centre = (rates * trials + square / 2) / (trials + square)
    half = _DEVIATIONS * np.sqrt(rates * (1 - rates) * trials + square / 4) / (trials + square)
    above = np.linalg.norm(weights * (centre + half - rates))
    below = np.linalg.norm(weights * (rates - centre + half))
    return float(above + below)
