"""From counts to a rate, an interval and a verdict. Pure arithmetic: no torch, no pytest."""

from ft2.verdict.gate import Budget, Counts, Verdict, decide, is_lost_already
from ft2.verdict.interval import interval, lower_bound, upper_bound

__all__ = [
    "Budget",
    "Counts",
    "Verdict",
    "decide",
    "interval",
    "is_lost_already",
    "lower_bound",
    "upper_bound",
]
