"""When a campaign may stop before its last trial, without changing what its verdict promises.

A rule looks at complete prefixes in the order of the trials: trials in the order they end are no
sample of the faults, since fast ones come first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from ft2.verdict.evidence import log_evidence_above, log_evidence_below
from ft2.verdict.gate import Budget, Counts, exceeds

__all__ = ["CurtailedRule", "Decision", "SequentialRule", "StoppingRule", "stopping_rule"]

Decision = Literal["pass", "fail"]


class StoppingRule(Protocol):
    """Decides a campaign from its first trials."""

    def decide(self, prefix: Counts) -> Decision | None:
        """Decide from the outcomes of the first ``prefix.seen`` of ``prefix.planned`` trials.

        Returns
        -------
        str or None
            ``pass`` or ``fail`` where more trials are not needed, None where they are; at the last
            trial None is inconclusive.
        """
        ...


@lru_cache(maxsize=64)
def stopping_rule(planned: int, budget: Budget) -> StoppingRule:
    """Return the rule for a gate: sequential with a confidence, curtailed without."""
    if budget.confidence is None:
        return CurtailedRule(planned, budget)
    return SequentialRule(planned, budget, budget.confidence)


@dataclass(frozen=True)
class CurtailedRule:
    """Stops when no outcome of the missing trials could change the observed rate's verdict."""

    planned: int
    budget: Budget

    def decide(self, prefix: Counts) -> Decision | None:
        """See :meth:`StoppingRule.decide`."""
        missing = self.planned - prefix.seen
        rates = ((prefix.sdc, self.budget.sdc), (prefix.due, self.budget.due))
        if any(exceeds(events, self.planned, allowed) for events, allowed in rates):
            return "fail"
        if any(exceeds(events + missing, self.planned, allowed) for events, allowed in rates):
            return None
        return "pass"


@dataclass(frozen=True)
class SequentialRule:
    """Stops when the evidence proves a side of the budget, however often one looks.

    Before the last trial it decides by :func:`ft2.verdict.log_evidence_below` and its mirror. The
    probability of a wrong decision that these looks leave unspent, computed exactly for a rate that
    equals the budget, is spent at the last trial: a campaign that never stopped is decided there
    a little more carefully than a fixed one is (20,000 trials pass 0.5 % with 77 events at most,
    and not with 83), and one too small to stop at all exactly so.

    Trials that are dealt to several prompts in turn need not have the same rate: looked at when
    each prompt has had as many trials as any other, the promise holds for their mean rate, since
    the product of the rates' effects is largest where they are the same.

    DUEs have no interval of their own. The gate fails as soon as they must exceed their budget, and
    stops early to pass only when evidence of the same strength puts them within it.
    """

    planned: int
    budget: Budget
    confidence: float

    def decide(self, prefix: Counts) -> Decision | None:
        """See :meth:`StoppingRule.decide`."""
        trials, events = prefix.seen, prefix.sdc
        if exceeds(prefix.due, self.planned, self.budget.due):
            return "fail"
        last = trials == self.planned
        if self._fails_until(events) >= trials > 0 or (last and events >= self.last_fail):
            return "fail"
        if self._passes_from(events) <= trials and (last or self._spared_by_dues(prefix)):
            return "pass"
        return "pass" if last and events <= self.last_pass else None

    @property
    def earliest_pass(self) -> int | None:
        """Trials after which a campaign without an SDC passes; None: not within the plan."""
        if self.pass_times.size:
            return int(self.pass_times[0])
        return self.planned if self.last_pass >= 0 else None

    @property
    def _rate(self) -> float:
        return self.budget.sdc / 100

    @property
    def _proof(self) -> float:
        return -math.log1p(-self.confidence)

    def _passes_from(self, events: int) -> float:
        return self.pass_times[events] if events < self.pass_times.size else math.inf

    def _fails_until(self, events: int) -> int:
        if events >= self.fail_times.size:
            return self.planned
        return int(self.fail_times[events])

    def _spared_by_dues(self, prefix: Counts) -> bool:
        missing = self.planned - prefix.seen
        if not exceeds(prefix.due + missing, self.planned, self.budget.due):
            return True
        evidence = log_evidence_below(prefix.due, prefix.seen, self.budget.due / 100)
        return bool(evidence >= self._proof)

    @cached_property
    def pass_times(self) -> NDArray[np.int64]:
        """The fewest trials among which 0, 1, … events prove a rate below the budget."""
        events = np.arange(math.floor(self.planned * self._rate) + 1)
        low, high = events, np.full_like(events, self.planned + 1)
        while (high - low > 1).any():
            middle = (low + high) // 2
            proven = log_evidence_below(events, middle, self._rate) >= self._proof
            low, high = np.where(proven, low, middle), np.where(proven, middle, high)
        return high[high <= self.planned]

    @cached_property
    def fail_times(self) -> NDArray[np.int64]:
        """The most trials among which 0, 1, … events prove a rate above the budget.

        As far as that is less than the plan: more events prove it at any time.
        """
        most = self.planned
        count = min(most, math.ceil(most * self._rate + 8 * math.sqrt(most)) + 8) + 1
        events = np.arange(count)
        low, high = np.zeros_like(events), np.full_like(events, most + 1)
        while (high - low > 1).any():
            middle = (low + high) // 2
            counted = np.minimum(events, middle)
            proven = log_evidence_above(counted, middle, self._rate) >= self._proof
            low, high = np.where(proven, middle, low), np.where(proven, high, middle)
        # Of no event nothing is above; and n trials cannot hold more than n events.
        low = np.where(low >= events, low, 0)
        low[0] = 0
        return low[low < most]

    @cached_property
    def last_pass(self) -> int:
        """The most events among all trials that pass."""
        risk = 1 - self.confidence
        fixed = int(binom.ppf(risk, self.planned, self._rate))
        fixed -= binom.cdf(fixed, self.planned, self._rate) > risk
        if fixed < 0:
            return -1
        undecided, now, spent = np.ones(1), 0, 0.0
        for events, time in enumerate(self.pass_times):
            undecided = _later(undecided, int(time) - now, self._rate)[: fixed + 1]
            now = int(time)
            spent += undecided[events]
            undecided[events] = 0.0
        undecided = _later(undecided, self.planned - now, self._rate)[: fixed + 1]
        return int(np.searchsorted(spent + np.cumsum(undecided), risk, side="right")) - 1

    @cached_property
    def last_fail(self) -> int:
        """The fewest events among all trials that fail."""
        risk = 1 - self.confidence
        undecided, now, spent = np.ones(1), 0, 0.0
        for events, time in enumerate(self.fail_times):
            if time > now:
                undecided = _later(undecided, int(time) - now, self._rate)
                now = int(time)
                spent += undecided[events:].sum()
                undecided = undecided[:events]
        undecided = _later(undecided, self.planned - now, self._rate)
        tail = spent + np.cumsum(undecided[::-1])[::-1]
        enough = np.flatnonzero(tail <= risk)
        return int(enough[0]) if enough.size else undecided.size


def _later(chances: NDArray[np.float64], trials: int, rate: float) -> NDArray[np.float64]:
    """Return the chances of 0, 1, … events after so many more trials."""
    more = binom.pmf(np.arange(trials + 1), trials, rate)
    # What is left out is less than rounding.
    more = np.trim_zeros(np.where(more < 1e-18, 0.0, more), "b")
    return np.convolve(chances, more)
