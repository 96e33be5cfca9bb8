"""Turn what reports carry into counts and verdicts. Pure: no pytest, no torch.

What was planned is fixed before the first trial; nothing that is lost shrinks the denominator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ft2.report import CampaignResult
from ft2.verdict import (
    Allocation,
    Budget,
    Cell,
    Counts,
    Strata,
    Stratum,
    Verdict,
    decide,
    decide_early,
    decide_stratified,
    is_lost_already,
    strata_by_top_bit,
)
from pytest_ft2.looks import AllocationLooks, StopLooks
from pytest_ft2.plan import GatePlan, Payload
from pytest_ft2.problems import Problems, different_values, fullest
from pytest_ft2.records import CampaignRecords

__all__ = ["CampaignLedger", "Ledger"]

_PUBLIC_GOLDEN = (
    "passed",
    "changed_by_protection",
    "corrected_values",
    "recomputed_steps",
    "calls",
    "steps",
)


@dataclass
class CampaignLedger(CampaignRecords):
    """What one campaign's records say: which trials count, and what they decide."""

    _stops: StopLooks = field(init=False)
    _allocations: AllocationLooks = field(init=False)

    def __post_init__(self) -> None:
        self._stops = StopLooks(self.plan, self.budget)
        self._allocations = AllocationLooks(self.plan)

    def add(self, payload: Payload, nodeid: str) -> None:
        """Take in what :meth:`CampaignRecords.add` does, and look at what it decides."""
        super().add(payload, nodeid)
        if payload["kind"] == "cells":
            self._look()

    def add_trial(self, record: Payload) -> None:
        """Count a trial, and look at what the first ones decide."""
        super().add_trial(record)
        if self.masses and record["cell"] and Cell(*record["cell"]) not in self.masses:
            self.note_different_values()
        self._look()

    def _look(self) -> None:
        if self.plan.stop == "early":
            self._stops.look(self.trials, len(self.remaining))
        if self.plan.sampling == "stratified":
            self._allocations.look(self.trials, len(self.remaining), self.masses)

    @property
    def stopped_after(self) -> int | None:
        """How many first trials decided a gate that may stop early; None if not enough are in."""
        return self._stops.after

    @property
    def allocation(self) -> Allocation | None:
        """Where the trials behind the first ones are drawn from; None: uniformly."""
        return self._allocations.allocation

    @property
    def needed(self) -> tuple[range, ...] | None:
        """The numbers of the trials that make the campaign; None while that is not known."""
        if self.stopped_after is not None:
            return (range(self.stopped_after),)
        return self._allocations.chosen if self._allocations.ended else None

    @property
    def missing(self) -> list[int]:
        """The numbers of the trials that the next look at an allocation waits for."""
        return self._allocations.missing(self.trials, len(self.remaining))

    @property
    def is_hopeless(self) -> bool:
        """Whether it is certain that the campaign will be incomplete."""
        runs = (each for runs in self.golden.values() for each in runs)
        return bool(self.problems) or any(
            each.get("problem") and each["params"] in self.remaining for each in runs
        )

    @property
    def counts(self) -> Counts:
        """Outcomes of the planned trials; of the first ones where they decided."""
        outcomes = Counter(record["outcome"] for record in self.counted.values())
        broken = self.broken
        own = sum(
            record["outcome"] == "sdc" and record["params"] in broken
            for record in self.counted.values()
        )
        return Counts(self.plan.planned, outcomes["masked"], outcomes["sdc"], outcomes["due"], own)

    @property
    def counted(self) -> dict[int, Payload]:
        """The trials that the verdict is of, by number; others may have run beside them."""
        chosen = self.needed or self._allocations.chosen
        return {
            number: self.trials[number]
            for numbers in chosen
            for number in numbers
            if number in self.trials
        }

    @property
    def budget(self) -> Budget:
        """What the gate allows."""
        return Budget(self.plan.budget, self.plan.due_budget, self.plan.confidence)

    @property
    def decided(self) -> bool:
        """Whether the verdict is certain even if no more reports come."""
        enough = self.stopped_after is not None or self.counts.seen == self.plan.planned
        lost = self.plan.sampling == "uniform" and is_lost_already(self.counts, self.budget)
        return (self.ended and enough) or lost

    @property
    def without_verdict(self) -> str:
        """Why there is no verdict, where there is none."""
        if self.all_skipped is not None:
            return f"No verdict: the test was skipped ({self.all_skipped})."
        if not self.gate_selected:
            return f"No verdict: {self.plan.gate_id} was not selected."
        return "No verdict: the session ended before all trials had run."

    def all_problems(self) -> list[str]:
        """Return the sentences on what makes the numbers worthless, most telling first."""
        return Problems(self, self.counted).sentences()

    def result(self, *, finished: bool) -> CampaignResult:
        """Return the campaign's result; it has a verdict when finished or already decided."""
        verdict = None
        if self.gate_selected and self.all_skipped is None and (finished or self.decided):
            verdict = self._verdict()
            stopped = self.ended and self.stopped_after is not None
            if not finished and not stopped and self.counts.seen < self.plan.planned:
                verdict = decide(_as_masked(self.counts), self.budget)
        parted = self._strata
        known = [fullest(runs) for runs in self.golden.values()]
        shares = [each["share_outside"] for each in known if "share_outside" in each]
        return CampaignResult(
            nodeid=self.plan.key,
            seed=self.plan.seed,
            fault_model=self.plan.fault_model,
            protection=self.plan.protection,
            encoding=self.plan.encoding,
            budget=self.plan.budget,
            confidence=self.plan.confidence,
            due_budget=self.plan.due_budget,
            counts=self.counts,
            verdict=verdict,
            golden=[
                {"params": each["params"]}
                | {name: each.get(name) for name in _PUBLIC_GOLDEN}
                | {"passed_with_protection": not each.get("failed_with_protection")}
                for each in sorted(known, key=lambda each: self._order(each["params"]))
            ],
            excluded=self.excluded,
            trials=[_public(record, parted) for record in self.counted.values()],
            stop=self._stop(),
            strata=self.strata(),
            allocation=self.allocation,
            masses=self.masses,
            shares=self.shares,
            largest_weights=_largest([each.get("largest_weights") for each in known]),
            share_outside=sum(shares) / len(shares) if shares else None,
            replay_options=self.plan.replay_options,
        )

    @property
    def _strata(self) -> Strata | None:
        """How the space is parted; None where the plan is uniform, or cells are not known."""
        if self.allocation is not None:
            return self.allocation.strata
        is_parted = self.plan.sampling == "stratified" and self.masses
        return strata_by_top_bit(self.masses) if is_parted else None

    def strata(self, stage: Literal["first", "later"] | None = None) -> list[Stratum] | None:
        """Return what was seen in each stratum, that with the most SDCs first.

        None where the trials are those of a uniform plan.

        Parameters
        ----------
        stage:
            Of the trials that decided the allocation, or of those behind them; None: of all.
        """
        parted = self._strata
        if parted is None:
            return None
        outcomes = Counter(
            (_stratum(record, parted), record["outcome"])
            for number, record in self.counted.items()
            if stage in (None, self._allocations.stage(number))
        )
        return [
            Stratum(
                name,
                weight,
                sum(outcomes[name, outcome] for outcome in ("masked", "sdc", "due")),
                outcomes[name, "sdc"],
                outcomes[name, "due"],
            )
            for name, weight in zip(parted.names, parted.weights, strict=True)
        ]

    def _verdict(self) -> Verdict:
        counts, problems = self.counts, self.all_problems()
        first, later = self.strata("first"), self.strata("later")
        if self.allocation is not None and first and later:
            return decide_stratified(first, later, self.allocation, self.budget, problems)
        enough = self.stopped_after is not None or counts.seen == counts.planned
        # With a trial missing among the first, what has come in is no prefix to decide from.
        if self.plan.stop == "early" and enough:
            return decide_early(counts, self.budget, problems)
        return decide(counts, self.budget, problems)

    @property
    def saved(self) -> int:
        """Trials there were to choose from that will not run."""
        if self.needed is None:
            return 0
        # Behind a decision to stop, what other processes had begun has run too.
        stopped = self.stopped_after is not None
        run = len(self.trials) if stopped else sum(map(len, self.needed))
        return len(self.plan.numbers) - run

    def _stop(self) -> Payload | None:
        if self.plan.stop != "early":
            return None
        return {
            "after": self.stopped_after,
            "saved": 0 if self.stopped_after is None else self.plan.planned - len(self.trials),
            "not_counted": len(self.trials) - len(self.counted),
        }

    def _order(self, params: str) -> int:
        return self.plan.sets.index(params) if params in self.plan.sets else len(self.plan.sets)


def _largest(weights: Iterable[dict[str, float] | None]) -> dict[str, float] | None:
    """Return the largest weight of any run under each measure; None if no run knows any."""
    known = [each for each in weights if each]
    if not known:
        return None
    return {name: max(each[name] for each in known) for name in known[0]}


def _stratum(record: Payload, parted: Strata | None) -> str | None:
    """Return the name of a trial's stratum; None where there are no strata."""
    if parted is None or record["cell"] is None:
        return None
    number = parted.numbers.get(Cell(*record["cell"]))
    return None if number is None else parted.names[number]


def _public(record: Payload, parted: Strata | None) -> Payload:
    """Return what the JSON document says of a trial: its number is that of its draw."""
    inner = ("kind", "campaign", "draw", "cell")
    public = {name: value for name, value in record.items() if name not in inner}
    if parted is not None:
        size = None if record["cell"] is None else Cell(*record["cell"]).size
        public |= {"stratum": _stratum(record, parted), "size": size}
    return public | {"trial": record["draw"]}


def _as_masked(counts: Counts) -> Counts:
    """Suppose that all missing trials are masked: the best case of an unfinished campaign."""
    return Counts(counts.planned, counts.planned - counts.sdc - counts.due, counts.sdc, counts.due)


class Ledger:
    """All campaigns of a session."""

    def __init__(self) -> None:
        self.campaigns: dict[str, CampaignLedger] = {}
        self._waiting: dict[str, list[tuple[Payload, str]]] = {}

    def add(self, payload: Payload, nodeid: str) -> None:
        """Take in one thing that a report on `nodeid` carries."""
        kind = payload["kind"]
        if kind == "plan":
            self.plan(GatePlan.from_plain(payload["plan"]))
            return
        if payload["campaign"] in self.campaigns:
            self.campaigns[payload["campaign"]].add(payload, nodeid)
        else:
            # A user's own item can run before anything that knows the campaign's plan.
            self._waiting.setdefault(payload["campaign"], []).append((payload, nodeid))

    @property
    def environment(self) -> Payload:
        """What the golden runs ran in; where they differ in a value, all of them as one text."""
        found = different_values(
            [each for one in self.campaigns.values() for each in one.environments]
        )
        return {
            name: values[0] if len(values) == 1 else ", ".join(map(str, values))
            for name, values in found.items()
        }

    def plan(self, plan: GatePlan) -> CampaignLedger:
        """Return the ledger of a plan's campaign, new if there is none yet."""
        if plan.key not in self.campaigns:
            campaign = self.campaigns[plan.key] = CampaignLedger(plan)
            for payload, nodeid in self._waiting.pop(plan.key, []):
                campaign.add(payload, nodeid)
        return self.campaigns[plan.key]
