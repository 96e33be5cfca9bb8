"""What makes a campaign's numbers worthless, in sentences that say what to do. Pure: no pytest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pytest_ft2.plan import GatePlan, Payload
from pytest_ft2.records import CampaignRecords

__all__ = ["Problems", "different_values", "fullest"]

_SETS_NAMED = 5


@dataclass(frozen=True)
class Problems:
    """The problems of one campaign.

    Attributes
    ----------
    records:
        What was reported.
    counted:
        The trials that the verdict is of, by number.
    """

    records: CampaignRecords
    counted: Mapping[int, Payload]

    @property
    def _plan(self) -> GatePlan:
        return self.records.plan

    def sentences(self) -> list[str]:
        """Return them, most telling first."""
        found = [
            *self._model_problems(),
            *self._golden_problems(),
            *self._selection_problems(),
            *self._crash_problems(),
            *self.records.problems,
        ]
        errors = [
            (record["draw"], record["error"])
            for record in self.counted.values()
            if record["outcome"] is None
        ]
        draws = [record["draw"] for record in self.counted.values()]
        if len(draws) > len(set(draws)):
            found.append(
                f"Processes disagree on which faults of {self._plan.key} are in which stratum: "
                "use --ft2-sampling=uniform, or one process."
            )
        if errors:
            number, sentence = errors[0]
            others = f" {len(errors) - 1} more trials ended so." if len(errors) > 1 else ""
            found.append(f"In trial {number} {sentence}{others}")
        deaf = [params for params in self._plan.sets if self.records.noise_holds.get(params)]
        if deaf:
            found.append(
                f"This assertion holds{self._for_sets(deaf)} when the model talks noise, so it "
                "cannot see a wrong answer: assert on what the model says."
            )
        deafened = [
            params
            for params in self._plan.sets
            if params in self.records.deafened and not self.records.noise_holds.get(params, True)
        ]
        if deafened:
            found.append(
                f"After the trials the assertion of {self._plan.key}{self._for_sets(deafened)} "
                "holds when the model talks noise, though it failed before: something a run did "
                "stays behind; use function-scoped fixtures for what the test changes."
            )
        dealt = self._dealt
        untried = dealt - self.records.noise_holds.keys()
        if not found and (untried or (self.records.trials and not dealt)):
            found.append("Whether the assertion can fail at all was not tried.")
        if not self.records.ended and not found:
            found.append(
                "Not every chunk of trials ran to its end, so whether a trial left something "
                "behind is not known: look at the errors above, and run again."
            )
        return found

    def _model_problems(self) -> Iterable[str]:
        sets: dict[str, list[str]] = {}
        for params in self.records.remaining:
            runs = self.records.golden.get(params, [])
            for model in {each["model"] for each in runs if each.get("model")}:
                sets.setdefault(model, []).append(params)
        members = [params for each in sets.values() for params in each]
        if len(members) > len(set(members)):
            yield (
                f"The golden runs of {self._plan.key} ran on {len(sets)} different models, and two "
                "models are never averaged: let the model fixture make the same one every time."
            )
        elif len(sets) > 1:
            examples = ", ".join(sorted(each[0] for each in sets.values()))
            yield (
                f"The parameter sets of {self._plan.key} ran on {len(sets)} different models (sets "
                f"{examples}, say), and two models are never averaged: let the model fixture "
                'depend on the parameter that chooses, with indirect=True, or use per="params".'
            )
        found = different_values(self.records.environments)
        different = {name: values for name, values in found.items() if len(values) > 1}
        if different:
            listed = "; ".join(
                f"{name}: {', '.join(map(str, values))}" for name, values in different.items()
            )
            yield (
                f"Not all golden runs of {self._plan.key} ran in the same environment ({listed}), "
                "and outcomes can depend on it: run all trials alike."
            )

    def _golden_problems(self) -> Iterable[str]:
        remaining = self.records.remaining
        runs = [each for params in remaining for each in self.records.golden.get(params, [])]
        if 2 * len(remaining) < len(self._plan.sets):
            yield (
                f"Only {len(remaining)} of {len(self._plan.sets)} parameter sets are answered "
                "rightly without a fault; at least half must be."
            )
        broken = []
        for params, runs in self.records.golden.items():
            named = f"The golden run {self._plan.key}" + (f" [{params}]" if params else "")
            if params not in remaining:
                # A trial of a set shows too that a process found its golden run right.
                if any(each["passed"] for each in runs) or params in self._dealt:
                    yield (
                        f"{named} passes in one run and fails in another, so whether to leave it "
                        "out is not known: make it independent of what ran before."
                    )
                continue
            yield from dict.fromkeys(each["problem"] for each in runs if each.get("problem"))
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
            sentence = fullest(runs).get("failed_with_protection")
            broken += [sentence] if sentence else []
        if 2 * len(broken) > len(remaining):
            yield broken[0]
        stayed = [params for params in remaining if self._stayed_in_first_token(params)]
        if stayed:
            yield (
                f"Protection {self._plan.protection} never left the first token"
                f"{self._for_sets(stayed)}, so it protected nothing there: pass the cache from "
                "forward to forward, or write the decode loop inside `with ft2.request(model):` "
                "(what generates one token only has nothing to protect: gate it unprotected)."
            )

    @cached_property
    def _dealt(self) -> set[str]:
        """The parameter sets of the counted trials, as far as these say."""
        return {record["params"] for record in self.counted.values()} - {None}

    def _stayed_in_first_token(self, params: str) -> bool:
        """Whether protected runs were seen and none of them came to a second token."""
        runs = self.records.golden.get(params, [])
        seen = [each["left_first_token"] for each in runs if "left_first_token" in each]
        return bool(seen) and not any(seen)

    def _for_sets(self, chosen: list[str]) -> str:
        """Name some of the parameter sets inside a sentence; say nothing where they are all."""
        if len(chosen) == len(self._plan.sets):
            return ""
        shown = ", ".join(chosen[:_SETS_NAMED])
        more = len(chosen) - _SETS_NAMED
        shown += f" and {more} more" if more > 0 else ""
        return f" for {len(chosen)} of {len(self._plan.sets)} parameter sets ({shown})"

    def _crash_problems(self) -> Iterable[str]:
        for chunk in self._plan.chunks:
            chunk_id = self._plan.chunk_id(chunk)
            if chunk_id not in self.records.crashes or chunk_id in self.records.ended_chunks:
                continue
            trial = self.records.crashes[chunk_id][-1]
            lost = sum(other not in self.records.trials for other in chunk)
            if trial is None:
                if lost:
                    yield (
                        f"A worker died while it computed a batch of {chunk_id}, and its {lost} "
                        "trials were lost: use --ft2-batch=1, to see which of them it is."
                    )
                continue
            draw = self.records.trials[trial]["draw"]
            behind = (
                f"the {lost} trials behind it were lost"
                if lost
                else "the fault-free run behind it was lost"
            )
            yield (
                f"A worker died in trial {draw}, which counts as a DUE, and {behind}: "
                f"`{self._plan.replay_line(draw)}` shows what ends the process."
            )

    def _selection_problems(self) -> Iterable[str]:
        missing = {*self._plan.numbers} - (self.records.selected or set())
        if self.records.selected is not None and missing:
            yield (
                f"Only {len(self.records.selected)} of the gate's {len(self._plan.numbers)} trials "
                f"were selected: select the test, {self._plan.key}, rather than parts of what is "
                "beside it."
            )


def fullest(runs: list[Payload]) -> Payload:
    """Return the report that knows most: a chunk's, which saw the protected run too."""
    return max(runs, key=len)


def different_values(environments: Iterable[Payload]) -> dict[str, list[Any]]:
    """Return the different values of each name, in order."""
    found: dict[str, list[Any]] = {}
    for environment in environments:
        for name, value in environment.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: sorted(values, key=str) for name, values in found.items()}
