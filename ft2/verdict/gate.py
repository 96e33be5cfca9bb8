"""From counts to a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ft2.verdict.deciding import trials_that_decide
from ft2.verdict.estimate import Estimate, UniformSample
from ft2.verdict.interval import lower_bound, upper_bound

__all__ = ["Budget", "Counts", "Verdict", "decide", "exceeds", "is_lost_already", "unusable"]

Name = Literal["pass", "fail", "inconclusive", "incomplete"]


@dataclass(frozen=True)
class Counts:
    """Outcomes of a campaign: of `planned` trials, how many were masked, SDC and DUE.

    Attributes
    ----------
    own:
        Of the SDCs, those on prompts that the protection alone answers wrongly, without a fault.
    """

    planned: int
    masked: int
    sdc: int
    due: int
    own: int = 0

    @property
    def seen(self) -> int:
        """Trials whose outcome is known."""
        return self.masked + self.sdc + self.due

    def told(self, trials: str) -> str:
        """Say how many of `trials` went wrong; a rate can follow."""
        if not self.own:
            return f"{self.sdc} of {trials} faults changed a right answer into a wrong one"
        return (
            f"{self.sdc} of {trials} trials gave a wrong answer, {self.own} of them where the "
            "protection alone gives one, without a fault"
        )


@dataclass(frozen=True)
class Budget:
    """What a gate allows.

    Attributes
    ----------
    sdc, due:
        The largest rates that pass, in per cent of the planned trials.
    confidence:
        None compares the observed rate with the budget. A number between 0.5 and 1 demands that
        the one-sided bound of that confidence decides.
    """

    sdc: float
    due: float = 5.0
    confidence: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A gate's decision.

    Attributes
    ----------
    name:
        ``pass``, ``fail``, ``inconclusive`` (only with a confidence) or ``incomplete``.
    reason:
        Sentences that say why, and what to do.
    rate:
        SDCs per planned trial, in per cent, or as the sampling estimates it; None when nothing was
        planned.
    interval:
        Two-sided 95 % interval of the rate, in per cent; None when nothing was planned.
    """

    name: Name
    reason: str
    rate: float | None
    interval: tuple[float, float] | None


def decide(
    counts: Counts,
    budget: Budget,
    problems: Sequence[str] = (),
    estimate: Estimate | None = None,
    dues: Estimate | None = None,
) -> Verdict:
    """Decide a gate whose number of trials was fixed before the first.

    Parameters
    ----------
    counts:
        The outcomes. A trial without one makes the verdict incomplete; it never shrinks the
        denominator.
    budget:
        What the gate allows.
    problems:
        Sentences on what makes the campaign's numbers worthless; any makes it incomplete.
    estimate, dues:
        What the trials say of the rates of SDCs and of DUEs; None where they were drawn uniformly.

    Returns
    -------
    Verdict
        Rate and interval are over the planned trials.
    """
    if counts.planned == 0:
        return Verdict("incomplete", unusable(counts, problems), None, None)
    uniform = estimate is None
    estimate = estimate or UniformSample(counts.sdc, counts.planned)
    rate, around = estimate.rate, estimate.interval()
    if problems or counts.seen < counts.planned:
        return Verdict("incomplete", unusable(counts, problems), rate, around)
    due_rate = (dues or UniformSample(counts.due, counts.planned)).rate
    if due_rate > budget.due:
        reason = (
            f"{counts.due} of {counts.planned} trials ended in a detected error, "
            f"{_shown_rate(due_rate, uniform)}, over the due_budget of {budget.due:g} %: find out "
            "what raises, or raise due_budget."
        )
        return Verdict("fail", reason, rate, around)
    if budget.confidence is None:
        name, reason = _compare(counts, budget, estimate, uniform)
    else:
        name, reason = _compare_with_confidence(
            counts, budget, budget.confidence, estimate, uniform
        )
    return Verdict(name, reason, rate, around)


def unusable(counts: Counts, problems: Sequence[str]) -> str:
    """Return the sentences that say why a campaign is incomplete."""
    if counts.planned == 0:
        return "No trial was planned, so nothing was tested."
    missing = counts.planned - counts.seen
    lost = [f"{missing} of {counts.planned} trials have no outcome."] if missing else []
    return " ".join([*problems, *lost])


def is_lost_already(counts: Counts, budget: Budget) -> bool:
    """Whether no outcome of the missing trials could make an unfinished campaign pass.

    Only without a confidence: with one, a failing verdict still says how sure it is.
    """
    return budget.confidence is None and exceeds(counts.sdc, counts.planned, budget.sdc)


def exceeds(events: int, trials: int, allowed: float) -> bool:
    """Whether a share of the trials is more than `allowed` per cent."""
    # One arithmetic everywhere: allowed * trials can round the other way.
    return trials > 0 and 100 * events / trials > allowed


def _compare(counts: Counts, budget: Budget, estimate: Estimate, uniform: bool) -> tuple[Name, str]:
    rate = estimate.rate
    found = f"{counts.told(str(counts.planned))}, {_shown_rate(rate, uniform)}"
    if rate > budget.sdc:
        return "fail", f"{found}, over the budget of {budget.sdc:g} %."
    reason = f"{found}, within the budget of {budget.sdc:g} %."
    proven = estimate.upper_bound(0.95)
    if proven > budget.sdc:
        reason += (
            f" That is too few to prove it: with 95 % confidence (one-sided) the rate is below "
            f"{_shown_above(proven)} %."
        )
    return "pass", reason


def _compare_with_confidence(
    counts: Counts, budget: Budget, confidence: float, estimate: Estimate, uniform: bool
) -> tuple[Name, str]:
    sure = f"With {100 * confidence:g} % confidence the rate is"
    above, below = estimate.upper_bound(confidence), estimate.lower_bound(confidence)
    if above <= budget.sdc:
        return "pass", f"{sure} at most {above:.3g} %, within the budget of {budget.sdc:g} %."
    if below > budget.sdc:
        return "fail", f"{sure} at least {below:.3g} %, over the budget of {budget.sdc:g} %."

    share = counts.sdc if uniform else estimate.rate * counts.planned / 100

    def decides(trials: int) -> bool:
        events = round(share * trials / counts.planned)
        return (
            upper_bound(events, trials, confidence) <= budget.sdc
            or lower_bound(events, trials, confidence) > budget.sdc
        )

    needed = trials_that_decide(decides, counts.planned)
    drawn = "faults" if uniform else "uniformly drawn faults"
    advice = (
        "no number of faults decides while the rate equals the budget."
        if needed is None
        else f"about {needed} {drawn} would decide at this rate."
    )
    return "inconclusive", (
        f"{sure} between {below:.3g} and {above:.3g} %, and the budget of {budget.sdc:g} % lies "
        f"between: {advice}"
    )


def _shown_rate(rate: float, uniform: bool) -> str:
    return f"{rate:.3g} %" if uniform else f"{rate:.3g} % of the space they were drawn from"


def _shown_above(per_cent: float) -> str:
    """Round up, so that what is printed is still proven."""
    return f"{math.ceil(100 * per_cent) / 100:.2f}"
