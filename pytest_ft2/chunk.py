"""Run a chunk: its trials, one after the other, each reported as soon as it has ended."""

from __future__ import annotations

import gc
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from ft2.campaign import (
    Ahead,
    Batched,
    GoldenCalls,
    Outcome,
    Replies,
    RunSpec,
    Watched,
    is_sticky,
    preserved_randomness,
)
from ft2.faults import Fault
from pytest_ft2.crashes import batch_crashed, crashed_trials, leave_to_another_process
from pytest_ft2.deadline import last_resort
from pytest_ft2.drawing import ChunkDrawing, sample_fault
from pytest_ft2.goldens import GoldenRunner, GoldenSet
from pytest_ft2.items import ChunkItem, tear_down
from pytest_ft2.judgement import Proof, first_line, judge, read_proof, sticky_error
from pytest_ft2.options import SETTINGS
from pytest_ft2.oracle import Oracle
from pytest_ft2.plan import Payload
from pytest_ft2.reports import send
from pytest_ft2.timeouts import trial_timeout

__all__ = ["run_chunk"]

_ERRORS_SHOWN = 5
_MOST_OTHERS = 4

_SEARCHED = pytest.StashKey[bool]()

# What ran when the device was lost, the error, and what helps.
_LOST_DEVICE = pytest.StashKey[tuple[str, str, str]]()
_ELSEWHERE = "run them in other processes, with -n and a smaller --ft2-chunk"
_ONE_BY_ONE = "use --ft2-batch=1, to see which trial it is"


def run_chunk(chunk: ChunkItem, nextitem: pytest.Item | None) -> None:
    """Run the chunk's trials and report them; the chunk fails only on errors of the harness."""
    hooks = chunk.ihook
    hooks.pytest_runtest_logstart(nodeid=chunk.nodeid, location=chunk.location)
    send(chunk, "setup", [{"kind": "plan", "plan": chunk.campaign.plan.as_plain()}])
    started = time.perf_counter()
    run = _ChunkRun(chunk)
    # Another chunk may follow later, where tests are shuffled.
    is_last = not isinstance(nextitem, ChunkItem) or nextitem.campaign is not chunk.campaign
    try:
        with preserved_randomness():
            run.run(is_last=is_last)
    except RuntimeError as error:
        # A device that is lost says so whenever it is asked, be it for its random state.
        if not is_sticky(error):
            raise
        run.lose_device(f"a run of {chunk.nodeid}", error)
    errors = run.errors
    shown = "\n".join(errors[:_ERRORS_SHOWN])
    if len(errors) > _ERRORS_SHOWN:
        shown += f"\n… and {len(errors) - _ERRORS_SHOWN} more."
    seconds = time.perf_counter() - started
    send(chunk, "call", [], failure=shown or None, skipped=run.all_skipped, seconds=seconds)
    if is_last:
        run.goldens.forget_with_model()
    send(chunk, "teardown", [], failure=tear_down(chunk, nextitem))
    hooks.pytest_runtest_logfinish(nodeid=chunk.nodeid, location=chunk.location)


def _collect_garbage(config: pytest.Config) -> None:
    """Search all objects for garbage before this process's first trial: it counts in no trial.

    In a process with torch that takes as long as many trials. Afterwards Python does so again when
    there are a quarter more objects.
    """
    if _SEARCHED not in config.stash:
        config.stash[_SEARCHED] = True
        gc.collect()


@dataclass(frozen=True)
class _Ended:
    """How one run of a trial ended.

    Attributes
    ----------
    lost:
        The error that leaves the device unusable, or None.
    """

    outcome: Outcome | None
    error: str | None
    proof: Proof
    lost: BaseException | None
    seconds: float


class _ChunkRun:
    def __init__(self, chunk: ChunkItem) -> None:
        self.chunk = chunk
        self.campaign = chunk.campaign
        self.plan = chunk.campaign.plan
        self.goldens = GoldenRunner(
            self.campaign, chunk, chunk.config.stash[SETTINGS].model_fixture
        )
        self.errors: list[str] = []
        self._drawing = ChunkDrawing(chunk, self.goldens, self._report_problem)
        self._faults: dict[int, Fault] = {}
        self._computed: dict[int, Batched | str] = {}
        self._ended: list[tuple[int, Outcome | None]] = []
        self._oracle = Oracle(chunk, self.goldens, self._report_problem)
        self._watched = Watched(self.plan.planned, may_stop=self.plan.stop == "early")

    def run(self, *, is_last: bool) -> None:
        """Run golden runs, then trials, then look what stays; keep the harness's errors.

        Parameters
        ----------
        is_last:
            Whether this process runs no more of the campaign's trials next.
        """
        self._run_trials()
        if is_last and self.goldens.state.tried and not self._device_is_lost():
            self._check_what_stays()

    def _run_trials(self) -> None:
        while not self._device_is_lost() and (others := self._drawing.first_trials()):
            self._run_together(others)
        if not self._device_is_lost() and self._drawing.is_any_needed():
            self._run_together(self._trials())

    def _run_together(self, chosen: list[int]) -> None:
        sets = self._sets()
        if self.plan.sampling == "stratified" and not self._drawing.find_cells(sets):
            return
        # Each set's assertion is tried once in the whole session: beside the set's first trial.
        for trial in dict.fromkeys([*self.chunk.trials, *chosen]):
            if trial < len(sets):
                self._oracle.check(sets[trial])
        trials = [(trial, sets[self._drawing.draw(trial) % len(sets)]) for trial in chosen if sets]
        trials = [each for each in trials if self.goldens.of_set(each[1]).golden is not None]
        if not trials:
            return
        self._computed = self._compute_ahead(trials)
        if self._device_is_lost():
            return
        _collect_garbage(self.chunk.config)
        with last_resort():
            for trial, number in trials:
                if not self._drawing.is_needed(trial):
                    continue
                # Said before anything runs, so that it is known in which trial a process died.
                self._announce("begins", trial=trial, **self._drawing.drawn(trial))
                self._run_trial(trial, number)
                if self._device_is_lost():
                    return
        self._announce("behind")
        if self._ended:
            self._check_suspect()

    def _trials(self) -> list[int]:
        """Return the trials to run: when the chunk runs again, not those that ended it."""
        crashed = crashed_trials(self.chunk.config, self.chunk.nodeid)
        return [
            trial
            for trial in self.chunk.trials
            if trial not in crashed and self._drawing.is_needed(trial)
        ]

    def _fault(self, trial: int, number: int) -> Fault:
        """Return the fault of a trial of a set; raises as :func:`sample_fault` does."""
        if trial not in self._faults:
            draw = self._drawing.draw(trial)
            self._faults[trial] = sample_fault(self.plan, draw, self.goldens.of_set(number))
        return self._faults[trial]

    def _announce(self, kind: str, **values: Any) -> None:
        # Only another process can be there to hear of this one's end.
        if hasattr(self.chunk.config, "workerinput"):
            send(self.chunk, kind, [{"kind": kind, "campaign": self.plan.key, **values}])

    def _sets(self) -> list[int]:
        """Return the sets that trials are dealt to, after making the golden runs they need."""
        count = len(self.plan.sets)
        if self.plan.golden == "exclude" or self.plan.sampling == "stratified":
            # Which sets remain decides which set each trial belongs to, and all of them how large
            # strata are.
            known = [self._golden(number) for number in range(count)]
            excluded = self.plan.golden == "exclude"
            return [
                number
                for number, golden in enumerate(known)
                if not (excluded and golden.wrong_answer)
            ]
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

    def _check_suspect(self) -> None:
        """Run the set of the chunk's last failing trial without a fault, or that of its last one.

        Wrong answers are what most tests remember.
        """
        numbers = [number for number, _ in self._ended]
        failed = [number for number, outcome in self._ended if outcome is not Outcome.MASKED]
        state = self.goldens.state
        state.tried |= set(numbers)
        state.suspect = (failed or numbers)[-1]
        self._check_golden(state.suspect)

    def _check_what_stays(self) -> None:
        """Look what runs left behind: an assertion that is silent now, or another golden run."""
        state = self.goldens.state
        self._oracle.check_again(state.suspect)
        others = sorted(state.tried - {state.suspect})
        # A campaign may have a hundred prompts; what stays mostly stays for several.
        for number in others[:: math.ceil(len(others) / _MOST_OTHERS) or 1]:
            self._check_golden(number)
        state.tried.clear()

    def _check_golden(self, number: int) -> None:
        problem = self.goldens.again(number)
        if problem is not None:
            self._report_problem(problem)

    def _compute_ahead(self, trials: list[tuple[int, int]]) -> dict[int, Batched | str]:
        """Compute what can be computed together; say of each other trial why it runs alone."""
        settings = self.chunk.config.stash[SETTINGS]
        if settings.batch == 1:
            return {}
        if batch_crashed(self.chunk.config, self.chunk.nodeid):
            return dict.fromkeys((trial for trial, _ in trials), "their batch ended its process")
        asked: list[tuple[int, int, Fault]] = []
        goldens: dict[int, GoldenCalls] = {}
        for trial, number in trials:
            if number not in goldens and (calls := self.goldens.calls_of(number)) is not None:
                goldens[number] = calls
            if number in goldens:
                with suppress(ValueError):
                    asked.append((trial, number, self._fault(trial, number)))
        state = self.goldens.state
        if state.ahead is None:
            sharers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
            protected: dict[str, Any] = dict(self.plan.protected)
            policy = protected.pop("protection")
            state.ahead = Ahead(policy, rows=settings.batch, sharers=sharers, **protected)
        # Said before anything runs, so that it is known that a process died in a batch.
        self._announce("together")
        try:
            found = state.ahead.compute(goldens, asked)
        except RuntimeError as error:
            if not is_sticky(error):
                raise
            leave_to_another_process(self.chunk.config)
            where = f"a batch of {self.chunk.nodeid}"
            self.chunk.config.stash[_LOST_DEVICE] = (where, str(error), _ONE_BY_ONE)
            return {}
        self._announce("behind")
        if state.ahead.problem is not None:
            self._report_problem(state.ahead.problem)
        return found

    def _run_trial(self, trial: int, number: int) -> None:
        golden = self.goldens.of_set(number)
        try:
            fault = self._fault(trial, number)
        except ValueError as error:
            self._report_problem(f"{self.plan.key}: {error}.")
            return
        computed = self._computed.get(trial)
        ended: _Ended | None = None
        if isinstance(computed, Batched):
            replies = computed.replies()
            ended = self._end(number, fault, replies)
            # What failed around the test is an error of the harness, however the trial is computed.
            if replies.went_elsewhere or (not replies.delivered and ended.error is None):
                computed, ended = "its test did something else than without a fault", None
            elif not computed.is_exact and ended.outcome in (Outcome.SDC, Outcome.DUE):
                # A comparison to the last digit fails on a batch's rounding, without any fault.
                computed, ended = "it failed, and was told numbers that a batch rounds", None
        if ended is None:
            ended = self._end(number, fault)
        batch, seconds = 1, ended.seconds
        if isinstance(computed, Batched):
            batch, seconds = computed.batch, seconds + computed.seconds
        self._part_with_lost_device(trial, ended)
        self._ended.append((number, ended.outcome))
        assert golden.golden is not None
        proof = ended.proof
        record: Payload = {
            "kind": "trial",
            "campaign": self.plan.key,
            "trial": trial,
            "params": golden.label,
            "fault": str(fault),
            **self._drawing.drawn(trial),
            "before": proof.before,
            "after": proof.after,
            "landed": proof.landed,
            "phase": "first" if fault.step == 0 else "later",
            "outcome": None if ended.outcome is None else str(ended.outcome),
            "error": ended.error,
            "corrected": proof.corrected,
            "batch": batch,
            "alone": computed if isinstance(computed, str) else None,
            "seconds": seconds,
            "weights": golden.golden.weights(fault),
        }
        if ended.error is not None:
            self.errors.append(f"Trial {record['draw']}: {ended.error}")
        # Of a trial without an outcome there is nothing to compare.
        comparable = isinstance(computed, Batched) and ended.outcome is not None
        if self._watched.takes(trial, comparable):
            record["alike"] = self._watch(trial, number, fault, ended)
        send(self.chunk, "trial", [record])

    def _watch(self, trial: int, number: int, fault: Fault, batched: _Ended) -> bool | None:
        """Run a batched trial again, alone; return whether it ends alike, None if it cannot."""
        alone = self._end(number, fault)
        self._part_with_lost_device(trial, alone)
        if alone.error is not None:
            self._report_problem(
                f"In trial {self._drawing.draw(trial)}, when it ran again alone, {alone.error}"
            )
            return None
        same = alone.outcome is batched.outcome
        calls = self.goldens.of_set(number).calls
        if not same and calls is not None and not calls.is_half:
            self._report_problem(
                f"Trial {self._drawing.draw(trial)} ends differently in a batch "
                f"({batched.outcome}) and alone ({alone.outcome}), which no rounding "
                "explains: use --ft2-batch=1."
            )
        return same

    def _end(self, number: int, fault: Fault, replies: Replies | None = None) -> _Ended:
        """Run a set's test with a fault, or with answers computed with it, and judge it."""
        golden = self.goldens.of_set(number)
        limit = trial_timeout(self.campaign.sets[number], self.plan, golden.seconds)
        spec = RunSpec(**self.plan.protected, fault=fault)
        result, run = self.goldens.run(number, spec, limit, replies)
        proof = read_proof(run)
        outcome, error = judge(result, run, proof, golden.model_errors)
        lost = sticky_error(result, run) or proof.lost
        return _Ended(outcome, error, proof, lost, result.seconds)

    def _part_with_lost_device(self, trial: int, ended: _Ended) -> None:
        """Where a trial made the device unusable, leave the others to a process that can run them.

        If there is none, note that nothing more can be run.
        """
        if ended.lost is not None:
            leave_to_another_process(self.chunk.config)
            where = f"trial {self._drawing.draw(trial)} of {self.plan.key}"
            self.chunk.config.stash[_LOST_DEVICE] = (where, str(ended.lost), _ELSEWHERE)

    def lose_device(self, where: str, error: BaseException) -> None:
        """Note that the device is unusable since something ran, and run nothing more on it."""
        self.chunk.config.stash.setdefault(_LOST_DEVICE, (where, str(error), _ELSEWHERE))
        self._device_is_lost()

    def _device_is_lost(self) -> bool:
        """Whether a trial of this process, perhaps of another chunk, made the device unusable."""
        lost = self.chunk.config.stash.get(_LOST_DEVICE, None)
        if lost is None:
            return False
        where, error, remedy = lost
        self._report_problem(
            f"The device cannot be trusted since {where} ended in an error that stays with it "
            f"({first_line(error)}), so the trials behind it were not run: {remedy}."
        )
        return True

    def _report_problem(self, sentence: str) -> None:
        if sentence not in self.errors:
            self.errors.append(sentence)
            problem = {"kind": "problem", "campaign": self.plan.key, "sentence": sentence}
            send(self.chunk, "problem", [problem])
