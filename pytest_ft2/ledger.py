"""Turn what reports carry into counts and verdicts. Pure: no pytest, no torch.

What was planned is fixed before the first trial; what was seen is counted by the trial's number, so
that nothing counts twice and nothing that is lost shrinks the denominator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ft2.report import CampaignResult
from ft2.verdict import (
    Budget,
    Counts,
    Stratum,
    Verdict,
    decide,
    decide_early,
    decide_stratified,
    is_lost_already,
    stopping_rule,
)
from pytest_ft2.plan import GatePlan, Payload

__all__ = ["CampaignLedger", "Ledger"]

_PUBLIC_GOLDEN = (
    "passed",
    "changed_by_protection",
    "corrected_values",
    "recomputed_steps",
    "calls",
    "steps",
)
_SETS_NAMED = 5


@dataclass
class CampaignLedger:
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
        What is known of the trial that each chunk has begun.
    crashes:
        The trials of each chunk that ended a process.
    ended_chunks:
        The chunks that ran to their end.
    noise_holds:
        Of each parameter set that was tried, whether its assertion holds on noise.
    stopped_after:
        How many first trials, none of them missing, decided a gate that may stop early; None where
        all are needed, or not enough are in.
    """

    plan: GatePlan
    selected: set[int] | None = None
    gate_selected: bool = True
    ended: bool = False
    trials: dict[int, Payload] = field(default_factory=dict)
    golden: dict[str, list[Payload]] = field(default_factory=dict)
    noise_holds: dict[str, bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    running: dict[str, Payload] = field(default_factory=dict)
    crashes: dict[str, list[int]] = field(default_factory=dict)
    ended_chunks: set[str] = field(default_factory=set)
    stopped_after: int | None = None
    _first: Counts | None = None

    def note(self, sentence: str) -> None:
        """Add a problem, once."""
        if sentence not in self.problems:
            self.problems.append(sentence)

    def add(self, payload: Payload, nodeid: str) -> None:
        """Take in a trial, a golden run, the run with noise, or a problem, of the item `nodeid`."""
        kind = payload["kind"]
        if kind == "trial":
            self._add_trial(payload)
        elif kind == "begins":
            self.running[nodeid] = payload
        elif kind == "behind":
            self.running.pop(nodeid, None)
        elif kind == "golden":
            self.golden.setdefault(payload["params"], []).append(payload)
        elif kind == "noise":
            params = payload["params"]
            self.noise_holds[params] = payload["holds"] or self.noise_holds.get(params, False)
        elif kind == "problem":
            self.note(payload["sentence"])

    def _add_trial(self, record: Payload) -> None:
        """Count a trial; two runs of it must agree."""
        known = self.trials.setdefault(record["trial"], record)
        if (known["fault"], known["outcome"]) != (record["fault"], record["outcome"]):
            self.note(
                f"Trial {record['trial']} ran twice and ended differently ({known['outcome']}, "
                f"{record['outcome']}): outcomes must not depend on where or when a trial runs."
            )
        if self.plan.stop == "early" and self.stopped_after is None:
            self._look()

    def _look(self) -> None:
        """Look at the trials in their order, up to the first that is missing.

        Parameter sets differ in their rates. Evidence of the rate over all of them is looked at
        when each has had as many trials as any other; what is certain, after every trial.
        """
        planned = self.plan.planned
        stride = 1 if self.plan.confidence is None else max(1, len(self._remaining))
        first = self._first or Counts(planned, 0, 0, 0)
        rule = stopping_rule(planned, self.budget)
        while (record := self.trials.get(first.seen)) and record["outcome"] is not None:
            outcome = record["outcome"]
            first = Counts(
                planned,
                first.masked + (outcome == "masked"),
                first.sdc + (outcome == "sdc"),
                first.due + (outcome == "due"),
            )
            is_look = first.seen < planned and first.seen % stride == 0
            if is_look and rule.decide(first) is not None:
                self.stopped_after = first.seen
                break
        self._first = first

    def crashed(self, chunk_id: str) -> Payload | None:
        """Record that the process running a chunk died: what it had begun is a DUE.

        Returns
        -------
        dict or None
            The record of that trial, unless it ended a process before, or none had begun.
        """
        begun = self.running.pop(chunk_id, None)
        if begun is None:
            self.note(
                f"The worker running {chunk_id} died outside a trial: run it again with -n 0 to "
                "see why."
            )
            return None
        trial = begun["trial"]
        crashes = self.crashes.setdefault(chunk_id, [])
        if trial in crashes:
            return None
        crashes.append(trial)
        record = {
            "kind": "trial",
            "campaign": self.plan.key,
            "trial": trial,
            "params": None,
            "fault": None,
            "stratum": begun.get("stratum"),
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
        self._add_trial(record)
        return record

    @property
    def counts(self) -> Counts:
        """Outcomes of the planned trials; of the first ones where they decided."""
        outcomes = Counter(record["outcome"] for record in self.counted.values())
        return Counts(self.plan.planned, outcomes["masked"], outcomes["sdc"], outcomes["due"])

    @property
    def counted(self) -> dict[int, Payload]:
        """The trials that the verdict is of, by number: those behind the deciding ones are not."""
        end = self.plan.planned if self.stopped_after is None else self.stopped_after
        return {number: self.trials[number] for number in sorted(self.trials) if number < end}

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
    def all_skipped(self) -> str | None:
        """Why every golden run was skipped, or None."""
        reasons = [each.get("skipped") for runs in self.golden.values() for each in runs]
        return reasons[0] if reasons and all(reasons) and not self.trials else None

    @property
    def without_verdict(self) -> str:
        """Why there is no verdict, where there is none."""
        if self.all_skipped is not None:
            return f"No verdict: the test was skipped ({self.all_skipped})."
        if not self.gate_selected:
            return f"No verdict: {self.plan.gate_id} was not selected."
        return "No verdict: the session ended before all trials had run."

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
    def _remaining(self) -> list[str]:
        excluded = set(self.excluded)
        return [params for params in self.plan.sets if params not in excluded]

    def all_problems(self) -> list[str]:
        """Return the sentences on what makes the numbers worthless, most telling first."""
        found = [
            *self._model_problems(),
            *self._golden_problems(),
            *self._selection_problems(),
            *self._crash_problems(),
            *self.problems,
        ]
        errors = [
            (number, record["error"])
            for number, record in self.counted.items()
            if record["outcome"] is None
        ]
        if errors:
            number, sentence = errors[0]
            others = f" {len(errors) - 1} more trials ended so." if len(errors) > 1 else ""
            found.append(f"In trial {number} {sentence}{others}")
        deaf = [params for params in self.plan.sets if self.noise_holds.get(params)]
        if deaf:
            found.append(
                f"This assertion holds{self._for_sets(deaf)} when the model talks noise, so it "
                "cannot see a wrong answer: assert on what the model says."
            )
        dealt = {record["params"] for record in self.counted.values()} - {None}
        if not found and (dealt - self.noise_holds.keys() or (self.trials and not dealt)):
            found.append("Whether the assertion can fail at all was not tried.")
        if not self.ended and not found:
            found.append(
                "Not every chunk of trials ran to its end, so whether a trial left something "
                "behind is not known: look at the errors above, and run again."
            )
        return found

    def result(self, *, finished: bool) -> CampaignResult:
        """Return the campaign's result; it has a verdict when finished or already decided."""
        verdict = None
        if self.gate_selected and self.all_skipped is None and (finished or self.decided):
            verdict = self._verdict()
            stopped = self.ended and self.stopped_after is not None
            if not finished and not stopped and self.counts.seen < self.plan.planned:
                verdict = decide(_as_masked(self.counts), self.budget)
        known = [_fullest(runs) for runs in self.golden.values()]
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
            trials=[
                {name: value for name, value in record.items() if name not in ("kind", "campaign")}
                for record in self.counted.values()
            ],
            stop=self._stop(),
            strata=self.strata,
            largest_weights=_largest([each.get("largest_weights") for each in known]),
            share_outside=sum(shares) / len(shares) if shares else None,
            replay_options=self.plan.replay_options,
        )

    @property
    def strata(self) -> list[Stratum] | None:
        """What was seen in each stratum; None where the trials were drawn uniformly."""
        if self.plan.sampling == "uniform":
            return None
        known = [each for runs in self.golden.values() for each in runs if "strata" in each]
        outcomes = Counter(
            (record.get("stratum"), record["outcome"]) for record in self.counted.values()
        )
        return [
            Stratum(
                name,
                weight,
                sum(outcomes[name, outcome] for outcome in ("masked", "sdc", "due")),
                outcomes[name, "sdc"],
                outcomes[name, "due"],
            )
            for name, weight in (known[0]["strata"] if known else {}).items()
        ]

    def _verdict(self) -> Verdict:
        counts, problems = self.counts, self.all_problems()
        if self.strata is not None:
            return decide_stratified(self.strata, counts.planned, self.budget, problems)
        enough = self.stopped_after is not None or counts.seen == counts.planned
        # With a trial missing among the first, what has come in is no prefix to decide from.
        if self.plan.stop == "early" and enough:
            return decide_early(counts, self.budget, problems)
        return decide(counts, self.budget, problems)

    @property
    def saved(self) -> int:
        """Planned trials that stopping early spared."""
        return 0 if self.stopped_after is None else self.plan.planned - len(self.trials)

    def _stop(self) -> Payload | None:
        if self.plan.stop != "early":
            return None
        return {
            "after": self.stopped_after,
            "saved": self.saved,
            "not_counted": len(self.trials) - len(self.counted),
        }

    def _order(self, params: str) -> int:
        return self.plan.sets.index(params) if params in self.plan.sets else len(self.plan.sets)

    def _model_problems(self) -> Iterable[str]:
        sets: dict[str, list[str]] = {}
        for params in self._remaining:
            runs = self.golden.get(params, [])
            for model in {each["model"] for each in runs if each.get("model")}:
                sets.setdefault(model, []).append(params)
        members = [params for each in sets.values() for params in each]
        if len(members) > len(set(members)):
            yield (
                f"The golden runs of {self.plan.key} ran on {len(sets)} different models, and two "
                "models are never averaged: let the model fixture make the same one every time."
            )
        elif len(sets) > 1:
            examples = ", ".join(sorted(each[0] for each in sets.values()))
            yield (
                f"The parameter sets of {self.plan.key} ran on {len(sets)} different models (sets "
                f"{examples}, say), and two models are never averaged: let the model fixture "
                'depend on the parameter that chooses, with indirect=True, or use per="params".'
            )
        different = {
            name: values for name, values in _values(self.environments).items() if len(values) > 1
        }
        if different:
            listed = "; ".join(
                f"{name}: {', '.join(map(str, values))}" for name, values in different.items()
            )
            yield (
                f"Not all golden runs of {self.plan.key} ran in the same environment ({listed}), "
                "and outcomes can depend on it: run all trials alike."
            )

    def _golden_problems(self) -> Iterable[str]:
        remaining = self._remaining
        runs = [each for params in remaining for each in self.golden.get(params, [])]
        if len({tuple(each["strata"].items()) for each in runs if "strata" in each}) > 1:
            yield (
                f"The golden runs of {self.plan.key} compute in different number formats, so the "
                "strata weigh differently in them: name one format with --ft2-encoding."
            )
        if 2 * len(remaining) < len(self.plan.sets):
            yield (
                f"Only {len(remaining)} of {len(self.plan.sets)} parameter sets are answered "
                "rightly without a fault; at least half must be."
            )
        broken = []
        for params, runs in self.golden.items():
            if params not in remaining:
                continue
            yield from dict.fromkeys(each["problem"] for each in runs if each.get("problem"))
            named = f"The golden run {self.plan.key}" + (f" [{params}]" if params else "")
            failed = any(not each["passed"] for each in runs)
            if failed and not any(each.get("problem") for each in runs):
                yield f"{named} fails without any fault: make it pass."
            for name in ("digest", "protected_digest"):
                if len({each[name] for each in runs if each.get(name)}) > 1:
                    yield (
                        f"{named} differs between two processes or two runs: it must call the "
                        "model alike and get the same answers everywhere."
                    )
                    break
            sentence = _fullest(runs).get("failed_with_protection")
            broken += [sentence] if sentence else []
        if 2 * len(broken) > len(remaining):
            yield broken[0]
        stayed = [params for params in remaining if self._stayed_in_first_token(params)]
        if stayed:
            yield (
                f"Protection {self.plan.protection} never left the first token"
                f"{self._for_sets(stayed)}, so it protected nothing there: pass the cache from "
                "forward to forward, or write the decode loop inside `with ft2.request(model):` "
                "(what generates one token only has nothing to protect: gate it unprotected)."
            )

    def _stayed_in_first_token(self, params: str) -> bool:
        """Whether protected runs were seen and none of them came to a second token."""
        runs = self.golden.get(params, [])
        seen = [each["left_first_token"] for each in runs if "left_first_token" in each]
        return bool(seen) and not any(seen)

    def _for_sets(self, chosen: list[str]) -> str:
        """Name some of the parameter sets inside a sentence; say nothing where they are all."""
        if len(chosen) == len(self.plan.sets):
            return ""
        shown = ", ".join(chosen[:_SETS_NAMED])
        more = len(chosen) - _SETS_NAMED
        shown += f" and {more} more" if more > 0 else ""
        return f" for {len(chosen)} of {len(self.plan.sets)} parameter sets ({shown})"

    def _crash_problems(self) -> Iterable[str]:
        for chunk in self.plan.chunks:
            chunk_id = self.plan.chunk_id(chunk)
            if chunk_id not in self.crashes or chunk_id in self.ended_chunks:
                continue
            trial = self.crashes[chunk_id][-1]
            lost = sum(other not in self.trials for other in chunk)
            behind = (
                f"the {lost} trials behind it were lost"
                if lost
                else "the fault-free run behind it was lost"
            )
            yield (
                f"A worker died in trial {trial}, which counts as a DUE, and {behind}: "
                f"`{self.plan.replay_line(trial)}` shows what ends the process."
            )

    def _selection_problems(self) -> Iterable[str]:
        missing = set(range(self.plan.planned)) - (self.selected or set())
        if self.selected is not None and missing:
            yield (
                f"Only {len(self.selected)} of the gate's {self.plan.planned} trials were "
                f"selected: select the test, {self.plan.key}, rather than parts of what is beside "
                "it."
            )


def _fullest(runs: list[Payload]) -> Payload:
    """Return the report that knows most: a chunk's, which saw the protected run too."""
    return max(runs, key=len)


def _values(environments: Iterable[Payload]) -> dict[str, list[Any]]:
    """Return the different values of each name, in order."""
    found: dict[str, list[Any]] = {}
    for environment in environments:
        for name, value in environment.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: sorted(values, key=str) for name, values in found.items()}


def _largest(weights: Iterable[dict[str, float] | None]) -> dict[str, float] | None:
    """Return the largest weight of any run under each measure; None if no run knows any."""
    known = [each for each in weights if each]
    if not known:
        return None
    return {name: max(each[name] for each in known) for name in known[0]}


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
        found = _values([each for one in self.campaigns.values() for each in one.environments])
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
