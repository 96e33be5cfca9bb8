"""Run a chunk: its trials, one after the other, each reported as soon as it has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from ft2.campaign import (
    Outcome,
    Run,
    RunSpec,
    is_harness_error,
    is_sticky,
    outcome_of,
    preserved_randomness,
)
from ft2.faults import Draw, Fault, fault_model
from pytest_ft2.attempt import Attempt
from pytest_ft2.deadline import TrialTimeout
from pytest_ft2.goldens import GoldenRunner, GoldenSet
from pytest_ft2.items import ChunkItem, tear_down
from pytest_ft2.options import SETTINGS
from pytest_ft2.plan import GatePlan, Payload
from pytest_ft2.reports import send
from pytest_ft2.timeouts import trial_timeout

__all__ = ["run_chunk", "sample_fault"]

# An assertion on one of two answers holds on noise by chance half of the time: one that holds so
# often does not listen. Any other costs a run or two.
_NOISES = 16
_ERRORS_SHOWN = 5

_LOST_DEVICE = pytest.StashKey[tuple[str, str]]()


def run_chunk(chunk: ChunkItem, nextitem: pytest.Item | None) -> None:
    """Run the chunk's trials and report them; the chunk fails only on errors of the harness."""
    hooks = chunk.ihook
    hooks.pytest_runtest_logstart(nodeid=chunk.nodeid, location=chunk.location)
    send(chunk, "setup", [{"kind": "plan", "plan": chunk.campaign.plan.as_plain()}])
    started = time.perf_counter()
    with preserved_randomness():
        run = _ChunkRun(chunk)
        errors = run.run()
    shown = "\n".join(errors[:_ERRORS_SHOWN])
    if len(errors) > _ERRORS_SHOWN:
        shown += f"\n… and {len(errors) - _ERRORS_SHOWN} more."
    seconds = time.perf_counter() - started
    send(chunk, "call", [], failure=shown or None, skipped=run.all_skipped, seconds=seconds)
    send(chunk, "teardown", [], failure=tear_down(chunk, nextitem))
    hooks.pytest_runtest_logfinish(nodeid=chunk.nodeid, location=chunk.location)


def sample_fault(plan: GatePlan, trial: int, golden: GoldenSet) -> Fault:
    """Return the fault of a trial: the same in every process and under every protection.

    Raises
    ------
    ValueError
        If the encoding does not fit the model's dtype.
    """
    assert golden.golden is not None
    draw = Draw(plan.seed, plan.key, trial)
    return golden.golden.space.sample(draw, fault_model(plan.fault_model), plan.encoding)


class _ChunkRun:
    def __init__(self, chunk: ChunkItem) -> None:
        self.chunk = chunk
        self.campaign = chunk.campaign
        self.plan = chunk.campaign.plan
        self.goldens = GoldenRunner(
            self.campaign, chunk, chunk.config.stash[SETTINGS].model_fixture
        )
        self.errors: list[str] = []

    def run(self) -> list[str]:
        """Run golden runs, then trials, then a golden run again; return the harness's errors."""
        if self._device_is_lost():
            return self.errors
        sets = self._sets()
        # Each set's assertion is tried once in the whole session: beside the set's first trial.
        for trial in self.chunk.trials:
            if trial < len(sets):
                self._check_oracle(sets[trial])
        send(self.chunk, "started", [{"kind": "started", "trials": _bounds(self.chunk.trials)}])
        last = None
        for trial in self.chunk.trials:
            number = sets[trial % len(sets)] if sets else None
            if number is None or self.goldens.of_set(number).golden is None:
                continue
            self._run_trial(trial, number)
            last = number
            if self._device_is_lost():
                return self.errors
        if last is not None:
            problem = self.goldens.again(last)
            if problem is not None:
                self._report_problem(problem)
        return self.errors

    def _sets(self) -> list[int]:
        """Return the sets that trials are dealt to, after making the golden runs they need."""
        count = len(self.plan.sets)
        if self.plan.golden == "exclude":
            # Which sets remain decides which set each trial belongs to, so all must be known.
            known = [self._golden(number) for number in range(count)]
            return [number for number, golden in enumerate(known) if not golden.wrong_answer]
        for number in sorted({trial % count for trial in self.chunk.trials}):
            self._golden(number)
        return list(range(count))

    def _golden(self, number: int) -> GoldenSet:
        known = number in self.goldens.state.sets
        golden = self.goldens.of_set(number)
        if not known:
            send(self.chunk, "golden", [golden.payload])
        excluded = self.plan.golden == "exclude" and golden.wrong_answer
        if golden.problem is not None and golden.skipped is None and not excluded:
            self.errors.append(golden.problem)
        return golden

    @property
    def all_skipped(self) -> str | None:
        """Why all golden runs were skipped, or None."""
        reasons = [golden.skipped for golden in self.goldens.state.sets.values()]
        return reasons[0] if reasons and all(reasons) else None

    def _check_oracle(self, number: int) -> None:
        """Let the model talk noise: an assertion that still holds tests nothing."""
        golden = self.goldens.of_set(number)
        if golden.golden is None:
            return
        limit = trial_timeout(self.campaign.sets[number], self.plan, golden.seconds)
        holds = True
        for attempt in range(_NOISES):
            spec = RunSpec(noise=self.plan.seed + attempt)
            result, run = self.goldens.run(number, spec, limit)
            asserted = "call" in result.failed and not result.timed_out
            if not result.passed and (not asserted or run.attach_error is not None):
                self._report_problem(
                    f"Whether the assertion of {self.campaign.sets[number].nodeid} can fail was "
                    "not found out: with noise for logits the test does not get as far "
                    f"({result.shown})."
                )
                return
            if not result.passed:
                holds = False
                break
        noise: Payload = {"kind": "noise", "campaign": self.plan.key, "params": golden.label}
        send(self.chunk, "noise", [noise | {"holds": holds}])

    def _run_trial(self, trial: int, number: int) -> None:
        golden = self.goldens.of_set(number)
        item = self.campaign.sets[number]
        try:
            fault = sample_fault(self.plan, trial, golden)
        except ValueError as error:
            self._report_problem(f"{self.plan.key}: {error}.")
            return
        limit = trial_timeout(item, self.plan, golden.seconds)
        spec = RunSpec(protection=self.plan.protection, fault=fault)
        result, run = self.goldens.run(number, spec, limit)
        outcome, error_text = _judge(result, run, golden.model_errors)
        sticky = _sticky_error(result, run)
        if sticky is not None:
            where = f"trial {trial} of {self.plan.key}"
            self.chunk.config.stash[_LOST_DEVICE] = where, str(sticky)
        injection = run.injection
        assert golden.golden is not None
        record: Payload = {
            "kind": "trial",
            "campaign": self.plan.key,
            "trial": trial,
            "params": golden.label,
            "fault": str(fault),
            "before": None if injection is None else injection.before,
            "after": None if injection is None else injection.after,
            "landed": injection is not None and injection.landed,
            "phase": "first" if fault.step == 0 else "later",
            "outcome": None if outcome is None else str(outcome),
            "error": error_text,
            "corrected": run.corrected,
            "batch": 1,
            "seconds": result.seconds,
            "weights": golden.golden.weights(fault),
        }
        if error_text is not None:
            self.errors.append(f"Trial {trial}: {error_text}")
        send(self.chunk, "trial", [record])

    def _device_is_lost(self) -> bool:
        """Whether a trial of this process, perhaps of another chunk, made the device unusable."""
        lost = self.chunk.config.stash.get(_LOST_DEVICE, None)
        if lost is None:
            return False
        trial, error = lost
        self._report_problem(
            f"The device cannot be trusted since {trial} ended in an error that stays with it "
            f"({_first_line(error)}), so the trials behind it were not run: run them in other "
            "processes, with -n and a smaller --ft2-chunk."
        )
        return True

    def _report_problem(self, sentence: str) -> None:
        if sentence not in self.errors:
            self.errors.append(sentence)
            problem = {"kind": "problem", "campaign": self.plan.key, "sentence": sentence}
            send(self.chunk, "problem", [problem])


def _judge(result: Attempt, run: Run, usual_errors: int) -> tuple[Outcome | None, str | None]:
    """Return the outcome, or None and a sentence when the harness could not find out."""
    errors = [error for error, _ in result.failed.values()]
    if run.attach_error is not None:
        return None, f"ft2 could not attach to the model: {run.attach_error}."
    for error in (run.error, *errors):
        if error is not None and is_harness_error(error):
            return None, f"memory ran out ({error}): use a smaller model or fewer workers."
    for phase, (error, line) in result.failed.items():
        if isinstance(error, TrialTimeout) or result.timed_out:
            continue
        if phase != "call" and run.error is None:
            return None, f"the {phase} of the test failed, not its assertion ({line})."
    if result.skipped is not None:
        return None, f"the test skipped only with the fault ({result.skipped})."
    expected = result.xfailed or result.xpassed
    if expected is not None:
        return None, f"the test is expected to fail only with the fault ({expected})."
    injection = run.injection
    if injection is None:
        return None, "no model was there to inject the fault into."
    if not injection.fired:
        return None, (
            "the fault did not land, its element was never computed: with the protection the test "
            "calls the model differently, or the model does not see what is attached to it."
        )
    if not injection.landed:
        return None, "the fault did not land, the value's bits are as before."
    # An error that the test provokes and handles without any fault too is none that a fault brings.
    raised = len(run.errors) > usual_errors or _sticky_error(result, run) is not None
    return outcome_of(result.passed, raised, result.timed_out), None


def _sticky_error(result: Attempt, run: Run) -> BaseException | None:
    """Return the error that leaves the device unusable, wherever in the test it showed."""
    errors = (run.error, *(error for error, _ in result.failed.values()))
    return next((error for error in errors if error is not None and is_sticky(error)), None)


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "no message")


def _bounds(trials: Sequence[int]) -> list[int]:
    return [trials[0], trials[-1]]
