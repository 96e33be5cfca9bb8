"""What a gate asks of a sample of trials, however it was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ft2.verdict.interval import interval, lower_bound, upper_bound

__all__ = ["Estimate", "UniformSample"]


class Estimate(Protocol):
    """A rate, in per cent, and what is known of it."""

    @property
    def rate(self) -> float:
        """The rate as estimated."""
        ...

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return a two-sided interval."""
        ...

    def upper_bound(self, confidence: float) -> float:
        """Return a one-sided upper bound."""
        ...

    def lower_bound(self, confidence: float) -> float:
        """Return a one-sided lower bound."""
        ...


@dataclass(frozen=True)
class UniformSample:
    """Trials drawn uniformly from the space, their number fixed before the first."""

    events: int
    trials: int

    @property
    def rate(self) -> float:
        """Events per trial, in per cent."""
        return 100 * self.events / self.trials

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the two-sided exact interval, in per cent."""
        return interval(self.events, self.trials, confidence)

    def upper_bound(self, confidence: float) -> float:
        """Return the one-sided exact upper bound, in per cent."""
        return upper_bound(self.events, self.trials, confidence)

    def lower_bound(self, confidence: float) -> float:
        """Return the one-sided exact lower bound, in per cent."""
        return lower_bound(self.events, self.trials, confidence)
