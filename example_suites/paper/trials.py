"""Run faults into a subject's answers under one protection, as rows of batches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import ft2
from ft2.campaign import is_harness_error, is_sticky, preserved_randomness
from ft2.campaign.batch_engine import BatchEngine
from ft2.campaign.batch_size import fitting_rows
from ft2.faults import Draw, Fault, Space, fault_model
from ft2.protection import Profile
from protections import Protection
from subject import Asked, Subject, answer

__all__ = [
    "ANYWHERE",
    "DUE",
    "FIRST_TOKEN",
    "RIGHT",
    "SAME",
    "SDC",
    "UNREACHED",
    "FaultFree",
    "FaultSet",
    "Measured",
    "fault_free",
    "measure",
]

# What became of a trial, a letter each: the very text of the fault-free run, another that holds the
# reference answer (both masked: FT2, HPDC '25, section 2.3), one that does not, an exception in the
# model, or no fault at all, since the protected answer ended before its step.
SAME, RIGHT, SDC, DUE, UNREACHED = "mrsdu"

ANYWHERE, FIRST_TOKEN = "anywhere", "first token"

_FIXED_ROWS = {"cpu": 32, "cuda": 256}
_LEAST_ROWS = 8
_CHECKED = 4

Trial = tuple[int, Fault]


@dataclass(frozen=True)
class FaultSet:
    """Faults of one kind.

    Attributes
    ----------
    fault_model:
        ``1-bit``, ``2-bit`` or ``exp``.
    where:
        ``anywhere``: each step of the answer is equally likely; ``first token``: in step 0 alone.
    """

    fault_model: str
    where: str = ANYWHERE

    def draw(self, subject: Subject, numbers: range, seed: int) -> list[Trial]:
        """Draw faults: each is given with the number of the question into whose answer it strikes.

        They depend on the subject, the seed and their number alone, so that every protection meets
        the same ones.
        """
        bits = fault_model(self.fault_model)
        # The name has no fault model: two of them strike the same places.
        name = f"{subject.name}, {subject.task}"
        encoding = subject.precision.encoding
        trials = []
        for number in numbers:
            at = number % len(subject.asked)
            space = subject.space(at)
            if self.where == FIRST_TOKEN:
                space = Space(space.steps[:1])
            trials.append((at, space.sample(Draw(seed, name, number), bits, encoding)))
        return trials


@dataclass(frozen=True)
class FaultFree:
    """What a protection does to the answers without any fault.

    Attributes
    ----------
    questions:
        How many were asked.
    wrong, changed:
        How many answers it makes wrong, and how many texts other than they are without it.
    steps, corrected:
        Steps of all answers, and values (for ``ft2-recompute``: rows of steps) that were corrected.
    recomputed:
        Steps that were computed again; None where the protection does not do that.
    """

    questions: int
    wrong: int
    changed: int
    steps: int
    corrected: int
    recomputed: int | None = None


@dataclass(frozen=True)
class Measured:
    """The trials of one protection.

    Attributes
    ----------
    outcomes:
        Of each fault set a letter for each trial.
    fault_free:
        Its answers without a fault.
    rows:
        Rows of a batch at most; 1 where nothing could be batched.
    alone:
        Trials that ran one at a time, because their batch raised or the model cannot be batched.
    checked, alike:
        How many of the batched trials, half of them SDCs where there are enough, ran again one at a
        time, and how many of these came out alike; 0 where that was known.
    seconds:
        Wall time of all of it.
    """

    outcomes: dict[FaultSet, str]
    fault_free: FaultFree
    rows: int
    alone: int
    checked: int
    alike: int
    seconds: float


def measure(
    subject: Subject,
    protection: Protection,
    wanted: Mapping[FaultSet, range],
    *,
    seed: int = 0,
    rows: int | None = None,
    shared: bool = False,
    free: FaultFree | None = None,
    done: Callable[[], object] = lambda: None,
) -> Measured:
    """Run trials.

    Parameters
    ----------
    subject, protection:
        What is asked, under which protection.
    wanted:
        Of each fault set the numbers of the trials to run.
    seed:
        Determines the faults.
    rows:
        Rows of a batch, at most; None: what fits into the memory.
    shared:
        In half precision, whether questions share batches. Else each has batches of one shape of
        its own, in which a text does not depend on which trials run beside it.
    free:
        Its answers without a fault, if they are known from other trials; then none of these runs
        again one at a time, either.
    done:
        Called as a trial ends.

    Raises
    ------
    RuntimeError
        If a fault did not land, or the device is lost.
    """
    started = time.perf_counter()
    drawn = [
        (faults, trial)
        for faults, numbers in wanted.items()
        for trial in faults.draw(subject, numbers, seed)
    ]
    trials = [trial for _, trial in drawn]
    runner = _Runner(subject, protection, rows, subject.precision.is_half and not shared, done)
    with preserved_randomness():
        letters = runner.run(trials)
        checked = runner.check(trials, letters) if free is None else (0, 0)
        free = free or runner.fault_free()
    outcomes = dict.fromkeys(wanted, "")
    for (faults, _), letter in zip(drawn, letters, strict=True):
        outcomes[faults] += letter
    seconds = time.perf_counter() - started
    return Measured(outcomes, free, runner.rows, runner.alone, *checked, seconds)


def fault_free(subject: Subject, protection: Protection, profile: Profile) -> FaultFree:
    """Ask the questions without any fault, under a protection with given bounds."""
    runner = _Runner(subject, protection, None, subject.precision.is_half, lambda: None, profile)
    with preserved_randomness():
        runner.run([])
        return runner.fault_free()


class _Runner:
    """Asks the questions of a subject under one protection, with faults and without."""

    def __init__(
        self,
        subject: Subject,
        protection: Protection,
        rows: int | None,
        fixed: bool,
        done: Callable[[], object],
        profile: Profile | None = None,
    ) -> None:
        self._subject = subject
        self._model = subject.model
        if profile is None and protection.is_profiled:
            profile = subject.profile(protection.policy)
        self._settings = protection.settings(profile)
        self._label = protection.label
        self._fixed = fixed
        self._done = done
        self.rows = self._most_rows() if rows is None else rows
        if fixed:
            self.rows = max(self.rows, _LEAST_ROWS)
        self.alone = 0
        self._golden: dict[int, tuple[list[int], int]] = {}
        self._known: dict[tuple[int, tuple[int, ...]], str] = {}

    def _most_rows(self) -> int:
        if self._fixed:
            device = self._model.get_input_embeddings().weight.device
            return _FIXED_ROWS.get(device.type, 32)
        return fitting_rows(self._model, [each.prompt for each in self._subject.asked])

    def run(self, trials: Sequence[Trial]) -> list[str]:
        """Return a letter for each trial; what is fault-free is known afterwards."""
        letters = [""] * len(trials)
        by_question: dict[int, list[int]] = {at: [] for at in range(len(self._subject.asked))}
        for number, (at, _) in enumerate(trials):
            by_question[at].append(number)
        groups = [[at] for at in by_question] if self._fixed else [list(by_question)]
        for questions in groups:
            numbers = [number for at in questions for number in by_question[at]]
            self._run_group(questions, numbers, trials, letters)
        return letters

    def _run_group(
        self,
        questions: list[int],
        numbers: list[int],
        trials: Sequence[Trial],
        letters: list[str],
    ) -> None:
        """Run the trials of some questions in batches, in smaller ones when memory runs out."""
        while True:
            try:
                engine = self._engine(questions)
                break
            except (ValueError, NotImplementedError):
                # Not in rows, says the engine or the policy; what is wrong beyond that, it says
                # again.
                self._run_alone(questions, numbers, trials, letters)
                return
            except Exception as error:
                if is_sticky(error) or not is_harness_error(error) or self.rows < 2 * _LEAST_ROWS:
                    raise
            torch.cuda.empty_cache()
            self.rows //= 2
        for at, row in zip(questions, engine.golden, strict=True):
            self._golden[at] = (row.said, row.corrected[-1])
        place = {at: number for number, at in enumerate(questions)}
        waiting = [numbers]
        while waiting:
            chosen = waiting.pop()
            try:
                said = engine.run([(place[trials[n][0]], trials[n][1]) for n in chosen], self._done)
            except Exception as error:
                if is_sticky(error):
                    raise
                if is_harness_error(error):
                    if self.rows < 2 * _LEAST_ROWS:
                        raise
                    torch.cuda.empty_cache()
                    self.rows //= 2
                    engine = self._engine(questions)
                    waiting.append(chosen)
                elif len(chosen) == 1:
                    letters[chosen[0]] = self._alone(*trials[chosen[0]])
                else:
                    # Which of the rows makes the model raise shows only when they are apart.
                    half = len(chosen) // 2
                    waiting += [chosen[half:], chosen[:half]]
                continue
            for number, each in zip(chosen, said, strict=True):
                if each is None:
                    letters[number] = UNREACHED
                    continue
                if not each.injection.landed:
                    raise RuntimeError(
                        f"this fault did not land under {self._label}: {trials[number][1]}"
                    )
                letters[number] = self._letter(trials[number][0], each.said)

    def _engine(self, questions: list[int]) -> BatchEngine:
        prompts = [self._subject.asked[at].prompt for at in questions]
        engine = BatchEngine(
            self._model, prompts, rows=self.rows, fixed=self._fixed, **self._settings
        )
        engine.prepare()
        return engine

    def _run_alone(
        self,
        questions: list[int],
        numbers: list[int],
        trials: Sequence[Trial],
        letters: list[str],
    ) -> None:
        self.rows = 1
        for at in questions:
            asked = self._subject.asked[at]
            with ft2.protect(self._model, **self._settings) as protection:
                said = answer(self._model, asked.prompt)
            self._golden[at] = (said, sum(protection.counts))
        for number in numbers:
            letters[number] = self._alone(*trials[number])
            self._done()

    def _alone(self, at: int, fault: Fault) -> str:
        self.alone += 1
        return self._one(at, fault)

    def _one(self, at: int, fault: Fault) -> str:
        """Run one trial by itself, through ``generate``."""
        asked: Asked = self._subject.asked[at]
        with (
            ft2.protect(self._model, **self._settings),
            ft2.inject(self._model, fault) as injection,
        ):
            try:
                said = answer(self._model, asked.prompt)
            except Exception as error:
                if is_harness_error(error) or is_sticky(error):
                    raise
                return DUE
        return self._letter(at, said) if injection.landed else UNREACHED

    def _letter(self, at: int, said: Sequence[int]) -> str:
        key = (at, tuple(said))
        if key not in self._known:
            if key[1] == self._subject.asked[at].said:
                self._known[key] = SAME
            else:
                self._known[key] = RIGHT if self._subject.is_right(at, said) else SDC
        return self._known[key]

    def fault_free(self) -> FaultFree:
        """Say what the protection did without any fault."""
        asked = self._subject.asked
        letters = Counter(self._letter(at, said) for at, (said, _) in self._golden.items())
        return FaultFree(
            questions=len(asked),
            wrong=letters[SDC],
            changed=letters[SDC] + letters[RIGHT],
            steps=sum(len(said) for said, _ in self._golden.values()),
            corrected=sum(count for _, count in self._golden.values()),
            recomputed=self._recomputed(),
        )

    def _recomputed(self) -> int | None:
        total = 0
        for asked in self._subject.asked:
            with ft2.protect(self._model, **self._settings) as protection:
                answer(self._model, asked.prompt)
            if not protection.recomputations:
                return None
            total += sum(sum(call.recomputed) for call in protection.recomputations)
        return total

    def check(self, trials: Sequence[Trial], letters: Sequence[str]) -> tuple[int, int]:
        """Run a few trials again one at a time; return how many, and how many came out alike."""
        if self.rows == 1:
            return 0, 0
        sdc = [number for number, letter in enumerate(letters) if letter == SDC]
        masked = [number for number, letter in enumerate(letters) if letter in (SAME, RIGHT)]
        chosen = [
            number
            for found in (sdc, masked)
            for number in found[:: len(found) // _CHECKED or 1][:_CHECKED]
        ]
        alike = sum(self._is_alike(self._one(*trials[n]), letters[n]) for n in chosen)
        return len(chosen), alike

    @staticmethod
    def _is_alike(one: Any, other: Any) -> bool:
        return (one == SDC) == (other == SDC) and (one == DUE) == (other == DUE)
