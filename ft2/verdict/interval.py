"""Exact intervals for a rate of rare events (Clopper and Pearson, 1934)."""

from __future__ import annotations

from scipy.stats import binomtest

__all__ = ["interval", "lower_bound", "upper_bound"]


def interval(events: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided exact interval of a rate, in per cent.

    Parameters
    ----------
    events, trials:
        How many of the trials were events; 0 ≤ events ≤ trials, trials ≥ 1.
    confidence:
        Coverage, between 0 and 1.
    """
    bounds = binomtest(events, trials).proportion_ci(confidence, "exact")
    return 100 * float(bounds.low), 100 * float(bounds.high)


def upper_bound(events: int, trials: int, confidence: float) -> float:
    """Return the one-sided exact upper bound of a rate, in per cent."""
    bounds = binomtest(events, trials, alternative="less").proportion_ci(confidence, "exact")
    return 100 * float(bounds.high)


def lower_bound(events: int, trials: int, confidence: float) -> float:
    """Return the one-sided exact lower bound of a rate, in per cent."""
    bounds = binomtest(events, trials, alternative="greater").proportion_ci(confidence, "exact")
    return 100 * float(bounds.low)
