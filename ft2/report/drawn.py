"""Intervals for parts of a campaign's trials, by how these were drawn.

The verdict has the interval of the whole space. A part of it (a phase, a kind of layer, a bit),
another measure of it and other prompts than those asked have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ft2.verdict import (
    Allocation,
    Cell,
    always_valid_interval,
    interval,
    interval_for_new_prompts,
    interval_over_strata,
    weighted_interval,
)

__all__ = ["Drawn", "FixedTrials", "StoppedTrials", "StratifiedTrials"]

Trial = Mapping[str, Any]
Interval = tuple[float, float]


class Drawn(Protocol):
    """Makes two-sided 95 % intervals, in per cent, that hold for trials drawn so."""

    def of_part(self, trials: Sequence[Trial], holds: Callable[[Cell], bool]) -> Interval:
        """Return the interval of the rate in a part of the space.

        Parameters
        ----------
        trials:
            The trials in that part that have an outcome.
        holds:
            Whether a cell is in that part; each is as a whole, or not at all.
        """
        ...

    def of_measure(
        self, trials: Sequence[Trial], weights: Sequence[float], largest: float
    ) -> Interval:
        """Return the interval of the rate under another measure of the space.

        Parameters
        ----------
        trials:
            All trials whose weight is known.
        weights:
            Their sites' weights, as in :func:`ft2.verdict.weighted_interval`.
        largest:
            The largest weight of any site.
        """
        ...

    def of_new_prompts(self, trials: Sequence[Trial]) -> Interval | None:
        """Return the interval of the rate over prompts like these.

        None where they say nothing of others.
        """
        ...


@dataclass(frozen=True)
class FixedTrials:
    """Uniform trials, as many as were planned."""

    def of_part(self, trials: Sequence[Trial], holds: Callable[[Cell], bool]) -> Interval:
        """See :meth:`Drawn.of_part`."""
        return interval(_sdcs(trials), len(trials))

    def of_measure(
        self, trials: Sequence[Trial], weights: Sequence[float], largest: float
    ) -> Interval:
        """See :meth:`Drawn.of_measure`."""
        return weighted_interval(weights, [*map(_is_sdc, trials)], largest)

    def of_new_prompts(self, trials: Sequence[Trial]) -> Interval | None:
        """See :meth:`Drawn.of_new_prompts`."""
        return _of_prompts(trials)


@dataclass(frozen=True)
class StoppedTrials:
    """Uniform trials that decided themselves how many they are: intervals hold at every look.

    Attributes
    ----------
    planned:
        How many there could have been.
    prompts:
        The names of all prompts that trials are dealt to.
    """

    planned: int
    prompts: Set[str]

    def of_part(self, trials: Sequence[Trial], holds: Callable[[Cell], bool]) -> Interval:
        """See :meth:`Drawn.of_part`."""
        return always_valid_interval(_sdcs(trials), len(trials))

    def of_measure(
        self, trials: Sequence[Trial], weights: Sequence[float], largest: float
    ) -> Interval:
        """See :meth:`Drawn.of_measure`."""
        events = [*map(_is_sdc, trials)]
        return weighted_interval(weights, events, largest, planned=self.planned)

    def of_new_prompts(self, trials: Sequence[Trial]) -> Interval | None:
        """See :meth:`Drawn.of_new_prompts`.

        That of fixed trials holds at every look, once each prompt has had one
        (:func:`ft2.verdict.interval_for_new_prompts`).
        """
        return _of_prompts(trials) if self.prompts <= _by(trials, "params").keys() else None


@dataclass(frozen=True)
class StratifiedTrials:
    """Uniform trials that decided how many of the others were drawn from which stratum.

    What the first ones decided was decided when the others began. So these alone make the
    intervals, as if nothing had been before: each stratum's interval holds with its part of what
    may go wrong, and counts by its share of the space.

    Attributes
    ----------
    allocation:
        Where the others were drawn from.
    masses:
        The cells' shares of the space.
    shares:
        Of each parameter set the shares that the strata have of its space.
    """

    allocation: Allocation
    masses: Mapping[Cell, float]
    shares: Mapping[str, Sequence[float]]

    def of_part(self, trials: Sequence[Trial], holds: Callable[[Cell], bool]) -> Interval:
        """See :meth:`Drawn.of_part`."""
        weights = [0.0] * len(self.allocation.more)
        for cell, mass in self.masses.items():
            if holds(cell):
                weights[self.allocation.strata.numbers[cell]] += mass

        def exact(some: Sequence[Trial], confidence: float) -> Interval:
            return interval(_sdcs(some), len(some), confidence) if some else (0.0, 100.0)

        return self._over_strata(self._behind(trials), weights, exact)

    def of_measure(
        self, trials: Sequence[Trial], weights: Sequence[float], largest: float
    ) -> Interval:
        """See :meth:`Drawn.of_measure`."""
        weight_of = {each["trial"]: weight for each, weight in zip(trials, weights, strict=True)}

        def weighed(some: Sequence[Trial], confidence: float) -> Interval:
            own = [weight_of[each["trial"]] for each in some]
            return weighted_interval(own, [*map(_is_sdc, some)], largest, confidence)

        return self._over_strata(self._behind(trials), self.allocation.strata.weights, weighed)

    def of_new_prompts(self, trials: Sequence[Trial]) -> Interval | None:
        """See :meth:`Drawn.of_new_prompts`."""
        rates = []
        for params, asked in _by(self._behind(trials), "params").items():
            found = _by(asked, "stratum")
            strata = dict(zip(self.allocation.strata.names, self.shares[params], strict=True))
            if any(share and name not in found for name, share in strata.items()):
                return None
            rates.append(
                sum(
                    share * _sdcs(found[name]) / len(found[name])
                    for name, share in strata.items()
                    if share
                )
            )
        return interval_for_new_prompts([(min(rate, 1.0), 1) for rate in rates])

    def _behind(self, trials: Sequence[Trial]) -> list[Trial]:
        return [each for each in trials if each["trial"] >= self.allocation.first]

    def _over_strata(
        self,
        trials: Sequence[Trial],
        weights: Sequence[float],
        of: Callable[[Sequence[Trial], float], Interval],
    ) -> Interval:
        found, whole = _by(trials, "stratum"), sum(weights)
        if not whole:
            return 0.0, 100.0
        low, high = interval_over_strata(
            [
                (weight / whole, partial(of, found.get(name, [])))
                for name, weight in zip(self.allocation.strata.names, weights, strict=True)
                if weight
            ]
        )
        return low, min(100.0, high)


def _by(trials: Sequence[Trial], name: str) -> dict[Any, list[Trial]]:
    found: dict[Any, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial[name], []).append(trial)
    return found


def _of_prompts(trials: Sequence[Trial]) -> Interval | None:
    prompts = _by(trials, "params").values()
    return interval_for_new_prompts([(_sdcs(each), len(each)) for each in prompts])


def _is_sdc(trial: Trial) -> bool:
    return bool(trial["outcome"] == "sdc")


def _sdcs(trials: Sequence[Trial]) -> int:
    return sum(map(_is_sdc, trials))
