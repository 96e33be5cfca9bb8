"""From counts to a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ft2.verdict.interval import interval, lower_bound, upper_bound

__all__ = ["Budget", "Counts", "Verdict", "decide", "is_lost_already"]

Name = Literal["pass", "fail", "inconclusive", "incomplete"]


@dataclass(frozen=True)
class Counts:
    """Outcomes of a campaign: of `planned` trials, how many were masked, SDC and DUE."""

    planned: int
    masked: int
    sdc: int
    due: int

    @property
    def seen(self) -> int:
        """Trials whose outcome is known."""
        return self.masked + self.sdc + self.due


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
        SDCs per planned trial, in per cent; None when nothing was planned.
    interval:
        Two-sided exact 95 % interval of the rate, in per cent; None when nothing was planned.
    """

    name: Name
    reason: str
    rate: float | None
    interval: tuple[float, float] | None


def decide(counts: Counts, budget: Budget, problems: Sequence[str] = ()) -> Verdict:
    """Decide a gate.

    Parameters
    ----------
    counts:
        The outcomes. A trial without one makes the verdict incomplete; it never shrinks the
        denominator.
    budget:
        What the gate allows.
    problems:
        Sentences on what makes the campaign's numbers worthless; any makes it incomplete.

    Returns
    -------
    Verdict
        Rate and interval are over the planned trials.
    """
    if counts.planned == 0:
        return Verdict("incomplete", "No trial was planned, so nothing was tested.", None, None)
    rate = 100 * counts.sdc / counts.planned
    around = interval(counts.sdc, counts.planned)
    missing = counts.planned - counts.seen
    if problems or missing:
        sentences = list(problems)
        if missing:
            sentences.append(f"{missing} of {counts.planned} trials have no outcome.")
        return Verdict("incomplete", " ".join(sentences), rate, around)
    due_rate = 100 * counts.due / counts.planned
    if due_rate > budget.due:
        reason = (
            f"{counts.due} of {counts.planned} trials ended in a detected error, "
            f"{due_rate:.3g} %, over the due_budget of {budget.due:g} %: find out what raises, or "
            "raise due_budget."
        )
        return Verdict("fail", reason, rate, around)
    if budget.confidence is None:
        return _compare(counts, budget, rate, around)
    return _compare_with_confidence(counts, budget, budget.confidence, rate, around)


def is_lost_already(counts: Counts, budget: Budget) -> bool:
    """Whether no outcome of the missing trials could make an unfinished campaign pass.

    Only without a confidence: with one, a failing verdict still says how sure it is.
    """
    # The same arithmetic as in the verdict: budget.sdc * planned can round the other way.
    spent = counts.planned > 0 and 100 * counts.sdc / counts.planned > budget.sdc
    return budget.confidence is None and spent


def _compare(counts: Counts, budget: Budget, rate: float, around: tuple[float, float]) -> Verdict:
    found = f"{counts.sdc} of {counts.planned} faults changed a right answer into a wrong one"
    if rate > budget.sdc:
        return Verdict(
            "fail", f"{found}, {rate:.3g} %, over the budget of {budget.sdc:g} %.", rate, around
        )
    reason = f"{found}, {rate:.3g} %, within the budget of {budget.sdc:g} %."
    proven = upper_bound(counts.sdc, counts.planned, 0.95)
    if proven > budget.sdc:
        reason += (
            f" That is too few to prove it: with 95 % confidence (one-sided) the rate is below "
            f"{_shown_above(proven)} %."
        )
    return Verdict("pass", reason, rate, around)


def _compare_with_confidence(
    counts: Counts, budget: Budget, confidence: float, rate: float, around: tuple[float, float]
) -> Verdict:
    sure = f"With {100 * confidence:g} % confidence the rate is"
    above = upper_bound(counts.sdc, counts.planned, confidence)
    below = lower_bound(counts.sdc, counts.planned, confidence)
    if above <= budget.sdc:
        reason = f"{sure} at most {above:.3g} %, within the budget of {budget.sdc:g} %."
        return Verdict("pass", reason, rate, around)
    if below > budget.sdc:
        reason = f"{sure} at least {below:.3g} %, over the budget of {budget.sdc:g} %."
        return Verdict("fail", reason, rate, around)
    needed = _faults_that_decide(counts, budget.sdc, confidence)
    advice = (
        "no number of faults decides while the rate equals the budget."
        if needed is None
        else f"about {needed} faults would decide at this rate."
    )
    reason = (
        f"{sure} between {below:.3g} and {above:.3g} %, and the budget of {budget.sdc:g} % lies "
        f"between: {advice}"
    )
    return Verdict("inconclusive", reason, rate, around)


def _faults_that_decide(counts: Counts, budget: float, confidence: float) -> int | None:
    def decides(trials: int) -> bool:
        events = round(counts.sdc * trials / counts.planned)
        return (
            upper_bound(events, trials, confidence) <= budget
            or lower_bound(events, trials, confidence) > budget
        )

    low, high = counts.planned, 2 * counts.planned
    while not decides(high):
        low, high = high, 2 * high
        if high > 1 << 40:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _shown_above(per_cent: float) -> str:
    """Round up, so that what is printed is still proven."""
    return f"{math.ceil(100 * per_cent) / 100:.2f}"
