"""What one campaign found, as reports and other tools read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ft2.report.drawn import Drawn, FixedTrials, StoppedTrials, StratifiedTrials
from ft2.verdict import (
    Allocation,
    Budget,
    Cell,
    Counts,
    SequentialRule,
    Stratum,
    Verdict,
    chance_of_another_early_verdict,
    chance_of_another_stratified_verdict,
    chance_of_another_verdict,
)

__all__ = ["CampaignResult"]


@dataclass(frozen=True)
class CampaignResult:
    """One campaign: what was asked, what was seen, and the verdict.

    Attributes
    ----------
    nodeid:
        The campaign's name.
    verdict:
        None when the session ended before there could be one.
    golden:
        One dict for each parameter set's fault-free runs.
    trials:
        One dict for each trial, in order.
    share_outside:
        Share of the MACs of the golden runs that no fault can hit, None when unknown.
    replay_options:
        Options that replaying a trial needs.
    stop:
        Of a campaign that may stop early: ``after`` how many trials it was decided, or None; how
        many it ``saved``; and how many more, ``not_counted``, other workers had run by then. None
        where all trials were to run.
    strata:
        What was seen in each stratum of the space; None of a plan that is uniform.
    allocation:
        Where the trials behind the first ones were drawn from; None where all were drawn
        uniformly, be it because the first ones gave no reason for another choice.
    masses:
        The shares that cells have of the space; empty where the plan is uniform.
    shares:
        Of each parameter set the shares that the strata have of its space, in their order; empty
        where the trials were drawn uniformly.
    largest_weights:
        The largest weight that any site has under each other measure of the space.
    """

    nodeid: str
    seed: int
    fault_model: str
    protection: str
    encoding: str | None
    budget: float
    confidence: float | None
    due_budget: float
    counts: Counts
    verdict: Verdict | None
    golden: Sequence[dict[str, Any]] = field(default=())
    excluded: Sequence[str] = ()
    trials: Sequence[dict[str, Any]] = field(default=())
    share_outside: float | None = None
    replay_options: Sequence[str] = ()
    stop: dict[str, Any] | None = None
    strata: Sequence[Stratum] | None = None
    allocation: Allocation | None = None
    masses: Mapping[Cell, float] = field(default_factory=dict)
    shares: Mapping[str, Sequence[float]] = field(default_factory=dict)
    largest_weights: dict[str, float] | None = None

    @property
    def complete(self) -> bool:
        """Whether all trials have an outcome, or all that were needed."""
        stopped = self.stop is not None and self.stop["after"] is not None
        return stopped or self.counts.seen == self.counts.planned

    @property
    def sampling(self) -> str:
        """How the trials were drawn: ``uniform`` or ``stratified``."""
        return "uniform" if self.strata is None else "stratified"

    @property
    def sampling_weights(self) -> dict[int, float]:
        """Of trials that were not drawn uniformly what each counts, by its number.

        How many trials uniform sampling would have given its stratum, over those it has. The first
        trials count 1: they were drawn before there were strata.
        """
        if self.allocation is None:
            return {}
        later = [each for each in self.trials if each["trial"] >= self.allocation.first]
        drawn = Counter(each["stratum"] for each in later if each["outcome"])
        parted = self.allocation.strata
        weights = dict(zip(parted.names, parted.weights, strict=True))
        return {
            each["trial"]: weights[each["stratum"]] * drawn.total() / drawn[each["stratum"]]
            for each in later
            if each["outcome"] and each["stratum"] in weights
        }

    @property
    def drawn(self) -> Drawn:
        """How the trials were drawn: makes the intervals for parts of them."""
        if self.allocation is not None:
            return StratifiedTrials(self.allocation, self.masses, self.shares)
        if self.stop is None:
            return FixedTrials()
        asked = {golden["params"] for golden in self.golden} - set(self.excluded)
        return StoppedTrials(self.counts.planned, asked)

    @property
    def interval_for_new_prompts(self) -> tuple[float, float] | None:
        """The rate over prompts like these, in per cent; None where they say nothing of others."""
        known = [trial for trial in self.trials if _is_known(trial)]
        return self.drawn.of_new_prompts(known) if self.complete else None

    @cached_property
    def chance_of_another_verdict(self) -> float | None:
        """The chance, in per cent, that another seed would decide otherwise; None if not known."""
        verdict, counts = self.verdict, self.counts
        if verdict is None or verdict.name == "incomplete" or not counts.seen:
            return None
        if 100 * counts.due > self.due_budget * counts.planned:
            return None
        budget = Budget(self.budget, self.due_budget, self.confidence)
        if self.allocation is not None:
            return chance_of_another_stratified_verdict(
                self.strata or (), self.allocation, budget, verdict.name
            )
        if self.stop is not None and self.confidence is not None:
            rule = SequentialRule(counts.planned, budget, self.confidence)
            return chance_of_another_early_verdict(counts.sdc, counts.seen, rule, verdict.name)
        return chance_of_another_verdict(counts.sdc, counts.seen, counts.planned, budget)

    @property
    def corrupted(self) -> list[dict[str, Any]]:
        """The trials that ended in silent data corruption."""
        return [trial for trial in self.trials if trial["outcome"] == "sdc"]

    def phase(self, name: str) -> tuple[int, int]:
        """Return (SDCs, trials) of the faults in one phase, ``first`` or ``later``."""
        trials = [trial for trial in self.trials if trial["phase"] == name and trial["outcome"]]
        return sum(trial["outcome"] == "sdc" for trial in trials), len(trials)


def _is_known(trial: dict[str, Any]) -> bool:
    return bool(trial["outcome"]) and trial["params"] is not None
