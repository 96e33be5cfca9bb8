"""What reports told of one campaign, by trial and by parameter set. Pure: no pytest, no torch.

What was seen is kept by the trial's number, so that nothing counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ft2.verdict import Cell
from pytest_ft2.plan import GatePlan, Payload

__all__ = ["CampaignRecords"]

# What processes compute alike differs by no more of the space.
_ROUNDING = 1e-3


@dataclass
class CampaignRecords:
    """What is known of one campaign.

    Attributes
    ----------
    selected:
        Trials that the session was to run; None until that is known.
    gate_selected:
        Whether the session is to decide the gate.
    ended:
        Whether every selected chunk ran to its end, its last fault-free run included.
    running:
        What is known of the trial, or of the batch, that each chunk has begun.
    crashes:
        The trials of each chunk that ended a process; None stands for a batch of them.
    ended_chunks:
        The chunks that ran to their end.
    noise_holds:
        Of each parameter set that was tried, whether its assertion holds on noise.
    masses:
        The cells' shares of the space; empty where they are not known, or not needed.
    shares:
        Of each parameter set the shares that strata have of its space.
    deafened:
        The parameter sets whose assertion holds on noise after trials.
    """

    plan: GatePlan
    selected: set[int] | None = None
    gate_selected: bool = True
    ended: bool = False
    trials: dict[int, Payload] = field(default_factory=dict)
    golden: dict[str, list[Payload]] = field(default_factory=dict)
    noise_holds: dict[str, bool] = field(default_factory=dict)
    masses: dict[Cell, float] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    deafened: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    running: dict[str, Payload] = field(default_factory=dict)
    crashes: dict[str, list[int | None]] = field(default_factory=dict)
    ended_chunks: set[str] = field(default_factory=set)

    def note(self, sentence: str) -> None:
        """Add a problem, once."""
        if sentence not in self.problems:
            self.problems.append(sentence)

    def add(self, payload: Payload, nodeid: str) -> None:
        """Take in a trial, a golden run, the run with noise, or a problem, of the item `nodeid`."""
        kind = payload["kind"]
        if kind == "trial":
            self.add_trial(payload)
        elif kind in ("begins", "together"):
            self.running[nodeid] = payload
        elif kind == "behind":
            self.running.pop(nodeid, None)
        elif kind == "golden":
            self.golden.setdefault(payload["params"], []).append(payload)
        elif kind == "noise":
            params = payload["params"]
            self.noise_holds[params] = payload["holds"] or self.noise_holds.get(params, False)
        elif kind == "cells":
            self._add_masses({Cell(*cell): share for *cell, share in payload["shares"]})
        elif kind == "strata":
            self.shares = self.shares or payload["shares"]
        elif kind == "deafened":
            self.deafened.add(payload["params"])
        elif kind == "problem":
            self.note(payload["sentence"])

    def _add_masses(self, masses: dict[Cell, float]) -> None:
        known = self.masses = self.masses or masses
        away = (abs(known.get(cell, 0) - masses.get(cell, 0)) for cell in {*known, *masses})
        if sum(away) > _ROUNDING:
            self.note_different_values()

    def note_different_values(self) -> None:
        """Add the problem that strata are not the same in all processes."""
        self.note(
            f"Two processes computed different values in the golden runs of {self.plan.key}, so "
            "strata differ between them: use --ft2-sampling=uniform, or one process."
        )

    def add_trial(self, record: Payload) -> None:
        """Count a trial; two runs of it must agree."""
        known = self.trials.setdefault(record["trial"], record)
        if (known["fault"], known["outcome"]) != (record["fault"], record["outcome"]):
            self.note(
                f"Trial {record['draw']} ran twice and ended differently ({known['outcome']}, "
                f"{record['outcome']}): outcomes must not depend on where or when a trial runs."
            )

    def crashed(self, chunk_id: str) -> Payload | None:
        """Record that the process running a chunk died: a trial that it had begun is a DUE.

        Returns
        -------
        dict or None
            The record of that trial, or word that the batch is behind; None if that ended a process
            before, or if neither had begun.
        """
        begun = self.running.pop(chunk_id, None)
        if begun is None:
            self.note(
                f"The worker running {chunk_id} died outside a trial: run it again with -n 0 to "
                "see why."
            )
            return None
        trial = begun.get("trial")
        crashes = self.crashes.setdefault(chunk_id, [])
        if trial in crashes:
            return None
        crashes.append(trial)
        if trial is None:
            return begun | {"kind": "behind"}
        record = {
            "kind": "trial",
            "campaign": self.plan.key,
            "trial": trial,
            "params": None,
            "fault": None,
            "draw": begun.get("draw", trial),
            "cell": begun.get("cell"),
            "before": None,
            "after": None,
            "landed": None,
            "phase": None,
            "outcome": "due",
            "error": "the process died in this trial",
            "corrected": None,
            "batch": 1,
            "seconds": None,
            "weights": {},
        }
        self.add_trial(record)
        return record

    @property
    def all_skipped(self) -> str | None:
        """Why every golden run was skipped, or None."""
        reasons = [each.get("skipped") for runs in self.golden.values() for each in runs]
        return reasons[0] if reasons and all(reasons) and not self.trials else None

    @property
    def excluded(self) -> list[str]:
        """Parameter sets that the gate leaves out, answered wrongly without a fault."""
        if self.plan.golden != "exclude":
            return []
        return [
            params
            for params, runs in self.golden.items()
            if any(each.get("wrong_answer") for each in runs)
        ]

    @property
    def environments(self) -> list[Payload]:
        """What each chunk's golden runs ran in."""
        runs = [each for runs in self.golden.values() for each in runs]
        return [each["environment"] for each in runs if each.get("environment")]

    @property
    def remaining(self) -> list[str]:
        """Parameter sets that trials are dealt to."""
        excluded = set(self.excluded)
        return [params for params in self.plan.sets if params not in excluded]

    @property
    def broken(self) -> set[str]:
        """Parameter sets that the protection alone makes fail, without a fault."""
        return {
            params
            for params, runs in self.golden.items()
            if any(each.get("failed_with_protection") for each in runs)
        }
