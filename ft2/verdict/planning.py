"""What a number of trials can prove, before any of them has run."""

from __future__ import annotations

import math

from ft2.verdict.gate import Budget
from ft2.verdict.interval import upper_bound

__all__ = ["least_trials", "never_passes"]

_MOST_TRIALS = 1 << 40


def least_trials(budget: float, confidence: float) -> int | None:
    """Return the fewest trials that prove a budget when none of them is an SDC.

    Parameters
    ----------
    budget:
        In per cent.
    confidence:
        Of the one-sided bound.

    Returns
    -------
    int or None
        None where no number does that anybody could run: for a budget of 0, say.

    Examples
    --------
    >>> least_trials(0.5, 0.95)
    598
    """
    if budget >= 100:
        return 1
    hazard = -math.log1p(-budget / 100)
    if hazard * _MOST_TRIALS < -math.log1p(-confidence):
        return None
    about = -math.log1p(-confidence) / hazard
    # Between what is too few and what is enough, whatever the logarithms were rounded to.
    low, high = math.floor(about * (1 - 1e-6)), math.ceil(about * (1 + 1e-6)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        proven = upper_bound(0, middle, confidence) <= budget
        low, high = (low, middle) if proven else (middle, high)
    return high


def never_passes(planned: int, budget: Budget) -> str | None:
    """Return a sentence on a plan that cannot pass, whatever its trials show; None if it can.

    Early stopping asks for no more trials than the fixed plan.
    """
    if budget.confidence is None or upper_bound(0, planned, budget.confidence) <= budget.sdc:
        return None
    sure = f"with {100 * budget.confidence:g} % confidence"
    needed = least_trials(budget.sdc, budget.confidence)
    if needed is None:
        return (
            f"no number of faults proves a rate within {budget.sdc:g} % {sure}, so this gate can "
            "never pass: give a larger budget, or leave confidence out"
        )
    return (
        f"{planned} faults without a single SDC do not prove a rate within {budget.sdc:g} % "
        f"{sure}, so this gate can never pass: plan at least {needed} (--ft2-faults={needed}), or "
        "leave confidence out"
    )
