"""The verdict of a campaign whose trials were drawn from two strata of the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ft2.verdict.gate import Budget, Counts, Verdict, decide, unusable
from ft2.verdict.strata import TwoStageSample

__all__ = ["LEAST_STRATIFIED", "Stratum", "decide_stratified"]

LEAST_STRATIFIED = 1000
"""Fewest trials for which strata are worth it: with fewer, the interval is seldom narrower."""


@dataclass(frozen=True)
class Stratum:
    """What a campaign saw in one stratum.

    Attributes
    ----------
    name:
        What its faults have in common.
    weight:
        Its share of the space; those of all strata add up to 1.
    trials:
        Trials with an outcome.
    sdc, due:
        How many of them ended so.
    """

    name: str
    weight: float
    trials: int
    sdc: int
    due: int


def decide_stratified(
    strata: Sequence[Stratum], planned: int, budget: Budget, problems: Sequence[str] = ()
) -> Verdict:
    """Decide a gate whose trials were allotted to two strata before the first.

    Rates of SDCs and DUEs are those of the space: each stratum's, weighted by its share. The
    interval is that of :class:`TwoStageSample` without a pilot.

    Parameters
    ----------
    strata:
        Both strata; none where nothing is known of them.
    planned:
        Trials of the campaign.
    budget:
        What the gate allows.
    problems:
        Sentences on what makes the campaign's numbers worthless; any makes it incomplete.

    Returns
    -------
    Verdict
        Without a rate where trials are missing: then there is no telling how they were allotted.
    """
    seen, sdc, due = (
        sum(getattr(each, name) for each in strata) for name in ("trials", "sdc", "due")
    )
    counts = Counts(planned, seen - sdc - due, sdc, due)
    missed = [
        f"No trial was drawn from the stratum {each.name}." for each in strata if not each.trials
    ]
    if seen < planned or missed or not strata:
        return Verdict("incomplete", unusable(counts, [*problems, *missed]), None, None)
    first, second = strata
    estimates = (
        TwoStageSample(0, 0, first.weight, first.trials, events, second.trials, others)
        for events, others in ((first.sdc, second.sdc), (first.due, second.due))
    )
    return decide(counts, budget, problems, *estimates)
