"""The fault-free runs of a campaign in one process: what every trial is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from ft2.campaign import (
    Ahead,
    ExponentReader,
    Golden,
    GoldenCalls,
    Replies,
    Run,
    RunSpec,
    seed_everything,
)
from ft2.layers import unwrap
from pytest_ft2.attempt import Attempt, attempt, cached_model, model_definition
from pytest_ft2.cells import CampaignCells
from pytest_ft2.environment import environment
from pytest_ft2.items import Campaign
from pytest_ft2.plan import GatePlan, Payload
from pytest_ft2.shares import crowding
from pytest_ft2.timeouts import golden_timeout

__all__ = ["CampaignState", "GoldenSet", "golden_payload", "state_of"]


@dataclass
class GoldenSet:
    """The golden runs of one parameter set in this process.

    Attributes
    ----------
    model_errors:
        How many exceptions leave the model without any fault, for the test to handle.
    golden:
        The unprotected run, or None if there is none that can be used.
    calls:
        What the model's calls ask and say under the trials' protection.
    is_model_fleeting:
        Whether the model is made anew for each run.
    seconds:
        How long the fastest of the runs took: the first may have loaded the model.
    problem:
        A sentence on why not, or None.
    skipped:
        Why the test skipped, or None.
    wrong_answer:
        Whether the fault-free model answers wrongly: ``golden="exclude"`` leaves the set out.
    """

    label: str
    model_errors: int = 0
    golden: Golden | None = None
    seconds: float = math.inf
    problem: str | None = None
    skipped: str | None = None
    wrong_answer: bool = False
    calls: GoldenCalls | None = None
    is_model_fleeting: bool = False
    payload: Payload = field(default_factory=dict)


@dataclass
class CampaignState:
    """What one process knows of a campaign.

    Attributes
    ----------
    by_item:
        Digests of the goldens that the user's own items made in this process, by set number.
    ahead:
        Computes trials before their tests ask for them; None until it is needed, and when the model
        is given up.
    ends_with_model:
        Whether it is given up when the model's fixture is torn down.
    tried:
        Numbers of the sets whose trials ran since it was looked for what they left behind.
    suspect:
        That of them to look at first.
    cells:
        The cells of its draws; None until they are needed.
    deaf:
        Numbers of the sets whose assertion was not seen to fail on noise: asking again costs many
        runs, and tells nothing more.
    """

    by_item: dict[int, str] = field(default_factory=dict)
    ahead: Ahead | None = None
    ends_with_model: bool = False
    sets: dict[int, GoldenSet] = field(default_factory=dict)
    tried: set[int] = field(default_factory=set)
    suspect: int = 0
    cells: CampaignCells | None = None
    deaf: set[int] = field(default_factory=set)


def state_of(campaign: Campaign) -> CampaignState:
    """Return the campaign's state in this process."""
    if campaign.state is None:
        campaign.state = CampaignState()
    return campaign.state


def golden_payload(plan: GatePlan, label: str, **values: Any) -> Payload:
    """Return what is reported of one golden run."""
    return {"kind": "golden", "campaign": plan.key, "params": label, **values}


class GoldenRunner:
    """Makes a campaign's golden runs, each set's once in this process.

    Parameters
    ----------
    neighbour:
        An item beside the user's items, for :func:`attempt`.
    """

    def __init__(self, campaign: Campaign, neighbour: pytest.Item, model_fixture: str) -> None:
        self.campaign = campaign
        self.plan = campaign.plan
        self.state = state_of(campaign)
        self._neighbour = neighbour
        self._model_fixture = model_fixture

    def of_set(self, number: int) -> GoldenSet:
        """Return the golden runs of a set, made now unless they were before."""
        if number not in self.state.sets:
            self.state.sets[number] = self._make(number)
        return self.state.sets[number]

    def calls_of(self, number: int) -> GoldenCalls | None:
        """Return what the calls of a set ask of the model that its fixture holds now.

        A fixture may have been torn down since, and set up with another model object: then the test
        runs once more, to see its calls.
        """
        known = self.of_set(number)
        if known.calls is None or known.is_model_fleeting or self._asks_current(number, known):
            return known.calls
        _, run = self._fault_free(known, number, RunSpec(**self.plan.protected, record=True))
        if run.golden is not None and run.golden.outputs == known.calls.outputs:
            known.calls = GoldenCalls(run.asked, run.calls, run.golden.outputs, run.returned)
        known.is_model_fleeting = not self._asks_current(number, known)
        return known.calls

    def forget_with_model(self) -> None:
        """Give up what is computed ahead of trials when the model's fixture is torn down.

        Where that has happened already it is given up at once.
        """
        item = self.campaign.sets[0]
        definition = model_definition(item, self._model_fixture)
        if definition is None or cached_model(item, self._model_fixture) is None:
            self.state.ahead = None
        elif self.state.ahead is not None and not self.state.ends_with_model:
            self.state.ends_with_model = True
            definition.addfinalizer(self._forget)

    def _forget(self) -> None:
        self.state.ahead = None
        self.state.ends_with_model = False

    def _asks_current(self, number: int, known: GoldenSet) -> bool:
        model = cached_model(self.campaign.sets[number], self._model_fixture)
        if model is None or known.calls is None:
            return False
        held = unwrap(model)
        return all(asked.model() is held for asked in known.calls.asked.values())

    def again(self, number: int) -> str | None:
        """Run a set's golden once more; return a sentence if it is another one than before."""
        known = self.state.sets[number]
        result, run = self._fault_free(known, number, RunSpec(record=True))
        golden = run.golden
        name = self._named(number)
        if not result.passed or golden is None:
            return (
                f"After the trials the fault-free test {name} fails ({result.shown}): something a "
                "run did stays behind; use function-scoped fixtures for what the test changes."
            )
        if known.golden is None or golden.digest != known.golden.digest:
            return (
                f"After the trials the fault-free test {name} gets other answers from the model "
                "than before: something a run did stays behind; use function-scoped fixtures for "
                "what the test changes."
            )
        return None

    def read(self, number: int, exponents: ExponentReader) -> str | None:
        """Run a set's golden once more, to read values; return a sentence if it is another one."""
        known = self.state.sets[number]
        result, run = self._fault_free(known, number, RunSpec(record=True, exponents=exponents))
        golden = run.golden
        right = known.golden
        same = golden is not None and right is not None and golden.digest == right.digest
        if result.passed and same:
            return None
        return (
            f"The golden run {self._named(number)} does not repeat while its values are read: make "
            "it independent of what ran before."
        )

    def run(
        self, number: int, spec: RunSpec, seconds: float | None, replies: Replies | None = None
    ) -> tuple[Attempt, Run]:
        """Run a set's test once, from the golden run's random state, for so long at most.

        Its model's calls are told `replies`, if there are any.
        """
        seed_everything(self.plan.seed, f"{self.plan.key}\n{self.plan.sets[number]}")
        run = Run(spec, replies)
        result = attempt(
            self.campaign.sets[number], self._neighbour, run, self._model_fixture, seconds
        )
        return result, run

    def _fault_free(self, made: GoldenSet, number: int, spec: RunSpec) -> tuple[Attempt, Run]:
        result, run = self.run(number, spec, golden_timeout(self.campaign.sets[number]))
        made.seconds = min(made.seconds, result.seconds)
        return result, run

    def _named(self, number: int) -> str:
        return self.campaign.sets[number].nodeid

    def _make(self, number: int) -> GoldenSet:
        made = GoldenSet(self.plan.sets[number])
        result, run = self._fault_free(made, number, RunSpec(record=True))
        golden = run.golden
        made.model_errors = len(run.errors)
        made.problem = self._problem(number, result, run)
        made.skipped = result.skipped
        made.wrong_answer = (
            run.attach_error is None
            and not result.timed_out
            and ("call" in result.failed or result.xfailed is not None)
        )
        values: Payload = {
            "passed": result.passed,
            "skipped": result.skipped,
            "wrong_answer": made.wrong_answer,
        }
        if golden is not None and made.problem is None:
            made.problem = self._repeat(number, made, golden)
        if golden is not None and made.problem is None:
            made.golden = golden
            if self.plan.protection == "none":
                made.calls = GoldenCalls(run.asked, run.calls, golden.outputs, run.returned)
            values |= {
                "digest": golden.digest,
                "model": golden.model.fingerprint,
                "environment": environment(golden),
                "calls": golden.calls,
                "steps": golden.steps,
                "share_outside": golden.macs.share_outside,
                "largest_weights": golden.largest_weights,
            }
            values |= self._protected(number, made, golden)
        values["problem"] = made.problem
        made.payload = golden_payload(self.plan, made.label, **values)
        return made

    def _problem(self, number: int, result: Attempt, run: Run) -> str | None:
        name = self._named(number)
        golden = run.golden
        if run.attach_error is not None:
            return f"No fault can reach the model of {name}: {run.attach_error}."
        crowded = crowding(self._neighbour.config)
        if crowded is not None and torch.cuda.is_initialized():
            return f"The golden run {name} uses a GPU, and {crowded}."
        if result.timed_out:
            return (
                f"The golden run {name} takes longer than its timeout, without any fault "
                f"({result.shown}): give it more time."
            )
        if result.skipped is not None:
            return (
                f"The golden run {name} was skipped ({result.skipped}) after trials were dealt to "
                "it: use a skipif mark, which tells before."
            )
        expected = result.xfailed or result.xpassed
        if expected is not None:
            return (
                f"The golden run {name} is expected to fail ({expected}), so there is no right "
                'answer to lose: take its xfail mark off, or use golden="exclude".'
            )
        if "setup" in result.failed or "teardown" in result.failed:
            return (
                f"The fixtures of the golden run {name} fail without any fault ({result.shown}): "
                "mend them, or what they are told on the command line."
            )
        if not result.passed:
            return (
                f"The golden run {name} fails without any fault ({result.shown}): make it pass, or "
                'use golden="exclude" to drop the parameter sets that the model answers wrongly.'
            )
        if golden is None:
            return (
                f"{name} does not use the fixture {self._model_fixture!r}, so no fault can reach "
                "its model: use it in the test, or name the fixture that returns the model with "
                "the ini option ft2_model_fixture."
            )
        if golden.calls == 0:
            return (
                f"{name} never calls the model that the fixture {self._model_fixture!r} returned, "
                "so no fault can change its answer: call that object, not a copy of it."
            )
        if golden.space.elements == 0:
            return (
                f"{name} calls the model, but no projection of it was seen to run: it was compiled "
                "or captured before ft2 was attached; compile it in the fixture, or not at all."
            )
        return None

    def _repeat(self, number: int, made: GoldenSet, golden: Golden) -> str | None:
        before = self.state.by_item.get(number)
        if before is None:
            result, run = self._fault_free(made, number, RunSpec(record=True))
            again = run.golden
            if not result.passed or again is None:
                return (
                    f"The golden run {self._named(number)} passes once and then fails "
                    f"({result.shown}): make it independent of what ran before."
                )
            before = again.digest
        if before != golden.digest:
            return (
                f"The golden run {self._named(number)} does not repeat: two fault-free runs from "
                "the same random state called the model differently or got different answers."
            )
        return None

    def _protected(self, number: int, made: GoldenSet, golden: Golden) -> Payload:
        if self.plan.protection == "none":
            return {"changed_by_protection": False, "corrected_values": 0, "recomputed_steps": 0}
        spec = RunSpec(**self.plan.protected, record=True)
        result, run = self._fault_free(made, number, spec)
        protected = run.golden
        if protected is not None:
            made.calls = GoldenCalls(run.asked, run.calls, protected.outputs, run.returned)
        if run.attach_error is not None:
            made.golden = None
            made.problem = (
                f"Protection {self.plan.protection} cannot be put on the model of "
                f"{self._named(number)}: {run.attach_error}."
            )
            return {}
        if not result.passed or protected is None:
            sentence = (
                f"Protection {self.plan.protection} alone, without a fault, makes "
                f"{self._named(number)} fail ({result.shown}): the model cannot be used with it."
            )
            return {
                "changed_by_protection": True,
                "corrected_values": run.corrected,
                "recomputed_steps": run.recomputed,
                "failed_with_protection": sentence,
            }
        return {
            "changed_by_protection": protected.outputs != golden.outputs,
            "corrected_values": run.corrected,
            "recomputed_steps": run.recomputed,
            "left_first_token": run.left_first_token,
            "protected_digest": protected.digest,
        }
