"""What the first trials of a campaign decide: to stop, or where to draw the others from.

Only trials in their order count, up to the first that is missing: those that have ended first are
no sample of the faults, since fast ones come first. So what is decided depends neither on how many
processes run them nor on which of them are done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ft2.verdict import Allocation, AllocationRule, Budget, Cell, Counts, stopping_rule
from pytest_ft2.plan import GatePlan, Payload

__all__ = ["AllocationLooks", "StopLooks"]


@dataclass
class StopLooks:
    """Looks for the trials that decide a gate which may stop early.

    Attributes
    ----------
    after:
        How many first trials decided it; None where all are needed, or not enough are in.
    """

    plan: GatePlan
    budget: Budget
    after: int | None = None
    _first: Counts | None = None

    def look(self, trials: Mapping[int, Payload], sets: int) -> None:
        """Look at the trials that have become complete.

        Parameter sets differ in their rates. Evidence of the rate over all of them is looked at
        when each has had as many trials as any other; what is certain, after every trial.

        Parameters
        ----------
        trials:
            Their records, by number.
        sets:
            How many parameter sets they are dealt to.
        """
        if self.after is not None:
            return
        planned = self.plan.planned
        stride = 1 if self.plan.confidence is None else max(1, sets)
        first = self._first or Counts(planned, 0, 0, 0)
        rule = stopping_rule(planned, self.budget)
        while (record := trials.get(first.seen)) and record["outcome"] is not None:
            outcome = record["outcome"]
            first = Counts(
                planned,
                first.masked + (outcome == "masked"),
                first.sdc + (outcome == "sdc"),
                first.due + (outcome == "due"),
            )
            is_look = first.seen < planned and first.seen % stride == 0
            if is_look and rule.decide(first) is not None:
                self.after = first.seen
                break
        self._first = first


@dataclass
class AllocationLooks:
    """Looks for the trials that show where SDCs are.

    Attributes
    ----------
    allocation:
        Where the trials behind them are drawn from; None while the sampling is uniform.
    ended:
        Whether that is decided for good.
    """

    plan: GatePlan
    allocation: Allocation | None = None
    ended: bool = False
    _seen: list[tuple[Cell, bool]] = field(default_factory=list)

    def look(self, trials: Mapping[int, Payload], sets: int, masses: Mapping[Cell, float]) -> None:
        """Look at the trials that have become complete.

        Parameters
        ----------
        trials:
            Their records, by number.
        sets:
            How many parameter sets they are dealt to.
        masses:
            The cells' shares of the space; none where they are not known.
        """
        if self.ended or not masses:
            return
        rule = self._rule(sets)
        last = rule.looks[-1] if rule.looks else 0
        while len(self._seen) < last and (record := trials.get(len(self._seen))):
            if record["outcome"] is None:
                # There is no verdict of such a campaign, and others wait for word.
                self.ended = True
                return
            cell = Cell(*record["cell"]) if record["cell"] else None
            if cell is None or cell not in masses:
                self.ended = True
                return
            self._seen.append((cell, record["outcome"] == "sdc"))
            if len(self._seen) in rule.looks:
                self.allocation = rule.allot(masses, self._seen)
            if self.allocation is not None:
                break
        self.ended = self.allocation is not None or len(self._seen) >= last

    def missing(self, trials: Mapping[int, Payload], sets: int) -> list[int]:
        """Return the numbers of the trials that the next look waits for; as :meth:`look`."""
        seen = len(self._seen)
        following = next((each for each in self._rule(sets).looks if each > seen), seen)
        return [number for number in range(seen, following) if number not in trials]

    def _rule(self, sets: int) -> AllocationRule:
        return AllocationRule(self.plan.planned, max(1, sets))

    @property
    def chosen(self) -> tuple[range, ...]:
        """The numbers of the trials that make the campaign, ascending, as far as is known yet."""
        planned = self.plan.planned
        if self.allocation is None:
            return (range(planned),)
        uniform = range(self.allocation.first + self.allocation.uniform)
        return uniform, range(planned, planned + sum(self.allocation.more))

    def stage(self, trial: int) -> Literal["first", "later"]:
        """Return whether a trial helped to decide the allocation."""
        first = self.plan.planned if self.allocation is None else self.allocation.first
        return "first" if trial < first else "later"
