"""What one campaign found, as reports and other tools read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ft2.verdict import Counts, Verdict

__all__ = ["CampaignResult", "reweighted_rate"]


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

    @property
    def complete(self) -> bool:
        """Whether all trials have an outcome, or all that were needed."""
        stopped = self.stop is not None and self.stop["after"] is not None
        return stopped or self.counts.seen == self.counts.planned

    @property
    def corrupted(self) -> list[dict[str, Any]]:
        """The trials that ended in silent data corruption."""
        return [trial for trial in self.trials if trial["outcome"] == "sdc"]

    def phase(self, name: str) -> tuple[int, int]:
        """Return (SDCs, trials) of the faults in one phase, ``first`` or ``later``."""
        trials = [trial for trial in self.trials if trial["phase"] == name and trial["outcome"]]
        return sum(trial["outcome"] == "sdc" for trial in trials), len(trials)


def reweighted_rate(trials: Sequence[dict[str, Any]], measure: str) -> float | None:
    """Estimate the SDC rate, in per cent, under another measure of the space.

    Each trial counts with the ratio of its site's weight under `measure` to its weight under the
    declared one, over the sum of these ratios (the self-normalised importance estimate).

    Parameters
    ----------
    measure:
        ``macs`` or ``time``.

    Returns
    -------
    float or None
        None when no trial has such a weight.
    """
    known = [trial for trial in trials if trial["outcome"] and measure in trial.get("weights", {})]
    total = sum(trial["weights"][measure] for trial in known)
    if not total:
        return None
    hit = sum(trial["weights"][measure] for trial in known if trial["outcome"] == "sdc")
    return 100 * hit / total
