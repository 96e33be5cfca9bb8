"""The verdict of a campaign whose trials were drawn from strata of the space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ft2.verdict.allocation import Allocation
from ft2.verdict.gate import Budget, Counts, Verdict, decide, unusable
from ft2.verdict.two_stage import LaterStratum, TwoStageSample

__all__ = ["Stratum", "decide_stratified", "interval_over_strata", "two_stage_samples"]


@dataclass(frozen=True)
class Stratum:
    """What trials showed in one stratum.

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
    first: Sequence[Stratum],
    later: Sequence[Stratum],
    allocation: Allocation,
    budget: Budget,
    problems: Sequence[str] = (),
) -> Verdict:
    """Decide a gate whose first trials showed where to draw the others from.

    Rates of SDCs and DUEs are those of the space, as :class:`TwoStageSample` estimates them. A
    campaign whose sampling stayed uniform is one for :func:`decide`.

    Parameters
    ----------
    first, later:
        The allocation's strata, in its order, as the uniform trials that decided it showed them,
        and as the others did.
    allocation:
        Where the others were drawn from.
    budget:
        What the gate allows.
    problems:
        Sentences on what makes the campaign's numbers worthless; any makes it incomplete.

    Returns
    -------
    Verdict
        Without a rate where trials are missing: they would be of one stratum or another.
    """
    seen, sdc, due = (
        sum(getattr(each, name) for each in (*first, *later)) for name in ("trials", "sdc", "due")
    )
    planned = allocation.first + allocation.uniform + sum(allocation.more)
    counts = Counts(planned, seen - sdc - due, sdc, due)
    missed = [
        f"No later trial was drawn from the stratum {each.name}."
        for each in later
        if not each.trials
    ]
    if seen < planned or missed:
        return Verdict("incomplete", unusable(counts, [*problems, *missed]), None, None)
    return decide(counts, budget, problems, *two_stage_samples(first, later))


def two_stage_samples(
    first: Sequence[Stratum], later: Sequence[Stratum]
) -> tuple[TwoStageSample, TwoStageSample]:
    """Return what the trials say of the rates of SDCs and of DUEs; as :func:`decide_stratified`."""
    trials = sum(each.trials for each in first)

    def sample(name: str) -> TwoStageSample:
        return TwoStageSample(
            trials,
            sum(getattr(each, name) for each in first),
            tuple(LaterStratum(each.weight, each.trials, getattr(each, name)) for each in later),
        )

    return sample("sdc"), sample("due")


def interval_over_strata(
    strata: Sequence[tuple[float, Callable[[float], tuple[float, float]]]],
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return a two-sided interval of the mean over strata, in the unit of theirs.

    Whatever the strata's intervals are, that of the mean holds where all of them do: so each may go
    wrong with its part of the risk.

    Parameters
    ----------
    strata:
        Of each its share, and what makes its interval at a given confidence.
    confidence:
        Coverage, between 0 and 1.
    """
    each = 1 - (1 - confidence) / len(strata)
    ends = [(share, of(each)) for share, of in strata]
    return sum(share * low for share, (low, _) in ends), sum(
        share * high for share, (_, high) in ends
    )
