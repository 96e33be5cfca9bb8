"""Intervals for parts of a campaign's trials, by how these were drawn.

The verdict has the interval of the whole space. A part of it (a phase, a kind of layer, a bit),
another measure of it and other prompts than those asked have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ft2.report.fault_text import fault_fields
from ft2.verdict import (
    Allocation,
    Stratum,
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

    def of_part(self, trials: Sequence[Trial], *, depends_on_bits: bool) -> Interval:
        """Return the interval of the rate in a part of the space.

        Parameters
        ----------
        trials:
            The trials in that part that have an outcome.
        depends_on_bits:
            Whether the part is one of the bits, and not of the elements.
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

    def of_part(self, trials: Sequence[Trial], *, depends_on_bits: bool) -> Interval:
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

    def of_part(self, trials: Sequence[Trial], *, depends_on_bits: bool) -> Interval:
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
    strata:
        The strata by their names and their shares of the space.
    planned:
        How many trials were planned: those numbered from there on are of the hot stratum alone.
    """

    allocation: Allocation
    strata: Sequence[Stratum]
    planned: int

    def of_part(self, trials: Sequence[Trial], *, depends_on_bits: bool) -> Interval:
        """See :meth:`Drawn.of_part`."""
        later = [each for each in trials if each["trial"] >= self.allocation.first]

        def exact(some: Sequence[Trial], confidence: float) -> Interval:
            return interval(_sdcs(some), len(some), confidence) if some else (0.0, 100.0)

        if not depends_on_bits:
            # Which bits flip does not depend on where: strata have the same shares everywhere.
            return self._over_strata(later, exact)
        if any(map(_flips_several, trials)):
            # Faults of either stratum can have this highest bit, in shares of their own.
            later = [each for each in later if each["trial"] < self.planned]
        return exact(later, 0.95)

    def of_measure(
        self, trials: Sequence[Trial], weights: Sequence[float], largest: float
    ) -> Interval:
        """See :meth:`Drawn.of_measure`."""
        weight_of = {each["trial"]: weight for each, weight in zip(trials, weights, strict=True)}

        def weighed(some: Sequence[Trial], confidence: float) -> Interval:
            own = [weight_of[each["trial"]] for each in some]
            return weighted_interval(own, [*map(_is_sdc, some)], largest, confidence)

        later = [each for each in trials if each["trial"] >= self.allocation.first]
        return self._over_strata(later, weighed)

    def of_new_prompts(self, trials: Sequence[Trial]) -> Interval | None:
        """See :meth:`Drawn.of_new_prompts`."""
        later = [each for each in trials if each["trial"] >= self.allocation.first]
        rates = []
        for prompt in _by(later, "params").values():
            found = _by(prompt, "stratum")
            if any(each.name not in found for each in self.strata):
                return None
            rates.append(
                sum(
                    each.weight * _sdcs(found[each.name]) / len(found[each.name])
                    for each in self.strata
                )
            )
        return interval_for_new_prompts([(min(rate, 1.0), 1) for rate in rates])

    def _over_strata(
        self, trials: Sequence[Trial], of: Callable[[Sequence[Trial], float], Interval]
    ) -> Interval:
        found = _by(trials, "stratum")
        low, high = interval_over_strata(
            [(each.weight, partial(of, found.get(each.name, []))) for each in self.strata]
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


def _flips_several(trial: Trial) -> bool:
    return ":" in fault_fields(trial["fault"])["bits"]
