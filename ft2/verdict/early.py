"""The verdict of a campaign that may stop before its last trial."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ft2.verdict.deciding import trials_that_decide
from ft2.verdict.evidence import always_valid_interval, log_evidence_above, log_evidence_below
from ft2.verdict.gate import Budget, Counts, Verdict, exceeds, unusable
from ft2.verdict.stopping import stopping_rule

__all__ = ["decide_early"]


def decide_early(counts: Counts, budget: Budget, problems: Sequence[str] = ()) -> Verdict:
    """Decide a gate from its first trials, as its :func:`stopping_rule` does.

    Parameters
    ----------
    counts:
        The outcomes of the first ``counts.seen`` trials, none of them missing: either the prefix
        at which the rule decided, or all there are.
    budget:
        What the gate allows.
    problems:
        Sentences on what makes the campaign's numbers worthless; any makes it incomplete.

    Returns
    -------
    Verdict
        The rate is that of the trials seen. Its interval holds at every look.
    """
    if counts.planned == 0 or counts.seen == 0:
        return Verdict("incomplete", unusable(counts, problems), None, None)
    rate = 100 * counts.sdc / counts.seen
    around = always_valid_interval(counts.sdc, counts.seen)
    decision = stopping_rule(counts.planned, budget).decide(counts)
    missing = counts.seen < counts.planned
    if missing and decision is None:
        return Verdict("incomplete", unusable(counts, problems), rate, around)
    if problems:
        return Verdict("incomplete", " ".join(problems), rate, around)
    sentences = [_seen(counts, rate), _why(counts, budget, decision, around)]
    if missing:
        sentences.append(
            f"The {counts.planned - counts.seen} other planned trials were not needed."
        )
    return Verdict(decision or "inconclusive", " ".join(sentences), rate, around)


def _seen(counts: Counts, rate: float) -> str:
    of = f"the first {counts.seen} of {counts.planned}"
    if counts.seen == counts.planned:
        of = f"all {counts.planned}"
    return f"{counts.told(of)}, {rate:.3g} %."


def _why(counts: Counts, budget: Budget, decision: str | None, around: tuple[float, float]) -> str:
    if exceeds(counts.due, counts.planned, budget.due):
        return (
            f"{counts.due} trials ended in a detected error, over the due_budget of {budget.due:g} "
            f"% of {counts.planned}: find out what raises, or raise due_budget."
        )
    side = "over" if decision == "fail" else "within"
    if budget.confidence is None:
        if counts.seen == counts.planned:
            return f"That is {side} the budget of {budget.sdc:g} %."
        return (
            f"Whatever the others would show, the rate of all {counts.planned} is {side} the "
            f"budget of {budget.sdc:g} %."
        )
    sure = f"With {100 * budget.confidence:g} % confidence, however often it was looked at,"
    if decision is None:
        return (
            f"{sure} the budget of {budget.sdc:g} % is neither kept nor exceeded: the rate is "
            f"between {around[0]:.3g} and {around[1]:.3g} %, and {_advice(counts, budget)}."
        )
    return f"{sure} the rate is {side} the budget of {budget.sdc:g} %."


def _advice(counts: Counts, budget: Budget) -> str:
    """Say how many faults in all would be evidence enough, their SDCs as frequent as those seen."""
    assert budget.confidence is not None
    proof, allowed = -math.log1p(-budget.confidence), budget.sdc / 100

    def decides(trials: int) -> bool:
        events = round(counts.sdc * trials / counts.seen)
        return bool(
            log_evidence_below(events, trials, allowed) >= proof
            or log_evidence_above(events, trials, allowed) >= proof
        )

    needed = trials_that_decide(decides, counts.seen)
    if needed is None:
        return "no number of faults decides while the rate equals the budget"
    return f"a plan of about {needed} faults would decide if it stays as it was seen"
