"""Faults into a subject's answers: the same for every protection, and none that did not strike."""

from __future__ import annotations

from typing import Any

import pytest

from ft2.campaign.batch_engine import BatchEngine, CannotBatchError
from protections import Protection, protections
from subject import Subject
from tests.example_suites.quickstart_questions import make
from trials import DUE, FIRST_TOKEN, SAME, SDC, UNREACHED, FaultSet, measure

EXP = FaultSet("exp")
NONE = Protection("none", "none")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make()


def test_the_same_seed_and_number_give_the_same_fault(subject: Subject) -> None:
    whole = EXP.draw(subject, range(40), seed=3)
    assert whole[25:] == EXP.draw(subject, range(25, 40), seed=3)
    assert whole != EXP.draw(subject, range(40), seed=4)
    assert [at for at, _ in whole[:6]] == [0, 1, 2, 3, 4, 0]


def test_faults_of_the_first_token_strike_in_step_0_alone(subject: Subject) -> None:
    drawn = FaultSet("1-bit", FIRST_TOKEN).draw(subject, range(60), seed=0)
    assert {fault.step for _, fault in drawn} == {0}
    assert {fault.step for _, fault in EXP.draw(subject, range(60), seed=0)} > {0, 1, 2}


@pytest.mark.parametrize("label", ["none", "ft2", "ft2, zero", "maximals", "ft2-recompute"])
def test_a_trial_in_a_batch_ends_as_it_ends_alone(subject: Subject, label: str) -> None:
    protection = protections()[label]
    wanted = {EXP: range(60)}
    together = measure(subject, protection, wanted, rows=64)
    alone = measure(subject, protection, wanted, rows=1)
    assert together.outcomes == alone.outcomes
    assert together.fault_free == alone.fault_free
    assert together.alike == together.checked > 0
    if label == "none":
        assert SDC in together.outcomes[EXP]


def test_an_unprotected_model_says_without_a_fault_what_it_said_when_it_was_chosen(
    subject: Subject,
) -> None:
    free = measure(subject, NONE, {EXP: range(5)}).fault_free
    assert (free.questions, free.wrong, free.changed, free.corrected) == (5, 0, 0, 0)
    assert free.steps == sum(len(each.said) for each in subject.asked)
    assert free.recomputed is None


def test_a_protection_that_computes_again_says_how_often(subject: Subject) -> None:
    free = measure(subject, protections()["ft2-recompute"], {EXP: range(5)}).fault_free
    assert (free.recomputed, free.changed) == (0, 0)


def test_what_cannot_be_batched_runs_alone_with_the_same_outcomes(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = measure(subject, NONE, {EXP: range(30)})

    def refuse(self: BatchEngine) -> Any:
        raise CannotBatchError("not this model")

    monkeypatch.setattr(BatchEngine, "prepare", refuse)
    alone = measure(subject, NONE, {EXP: range(30)})
    assert alone.outcomes == batched.outcomes
    assert (alone.alone, alone.rows) == (30, 1)


def test_a_fault_that_makes_the_model_raise_is_a_due_and_the_others_are_not(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = EXP.draw(subject, range(8), seed=0)
    clean = measure(subject, NONE, {EXP: range(8)}).outcomes[EXP]
    bad = drawn[3]
    run = BatchEngine.run

    def raising(self: BatchEngine, trials: Any, done: Any = lambda: None) -> Any:
        if any(fault == bad[1] for _, fault in trials):
            raise RuntimeError("index out of range")
        return run(self, trials, done)

    def broken(model: Any, prompt: Any) -> list[int]:
        raise RuntimeError("index out of range")

    monkeypatch.setattr(BatchEngine, "run", raising)
    monkeypatch.setattr("trials.answer", broken)
    # Both ask without this fault, and `broken` knows no other.
    monkeypatch.setattr("trials._Runner.check", lambda self, trials, letters: (0, 0))
    monkeypatch.setattr("trials._Runner._recomputed", lambda self: None)
    measured = measure(subject, NONE, {EXP: range(8)})
    letters = measured.outcomes[EXP]
    assert letters[3] == DUE
    assert letters[:3] + letters[4:] == clean[:3] + clean[4:]
    assert measured.alone == 1


def test_memory_that_runs_out_halves_the_batch(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(subject, NONE, {EXP: range(30)}, rows=64)
    run = BatchEngine.run

    def hungry(self: BatchEngine, trials: Any, done: Any = lambda: None) -> Any:
        if self._rows > 16:
            raise MemoryError
        return run(self, trials, done)

    monkeypatch.setattr(BatchEngine, "run", hungry)
    halved = measure(subject, NONE, {EXP: range(30)}, rows=64)
    assert halved.rows == 16
    assert halved.outcomes == whole.outcomes


def test_a_step_that_the_protected_answer_never_comes_to_is_no_masked_trial(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = BatchEngine.run

    def shorter(self: BatchEngine, trials: Any, done: Any = lambda: None) -> Any:
        return [None, *run(self, trials[1:], done)]

    monkeypatch.setattr(BatchEngine, "run", shorter)
    assert measure(subject, NONE, {EXP: range(6)}).outcomes[EXP][0] == UNREACHED


def test_a_fault_that_does_not_land_is_an_error(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = BatchEngine.run

    def missing(self: BatchEngine, trials: Any, done: Any = lambda: None) -> Any:
        found = run(self, trials, done)
        assert found[0] is not None
        found[0].injection._after = found[0].injection._before
        return found

    monkeypatch.setattr(BatchEngine, "run", missing)
    with pytest.raises(RuntimeError, match="this fault did not land under none: call=0"):
        measure(subject, NONE, {EXP: range(6)})


@pytest.mark.parametrize("shared", [False, True])
def test_half_precision_has_batches_of_each_questions_own_unless_they_are_shared(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = make(precision="fp16", wanted=3)
    sizes = []
    make_engine = BatchEngine.__init__

    def counting(self: BatchEngine, model: Any, prompts: Any, *given: Any, **options: Any) -> None:
        sizes.append((len(prompts), options["fixed"]))
        make_engine(self, model, prompts, *given, **options)

    monkeypatch.setattr(BatchEngine, "__init__", counting)
    measured = measure(half, NONE, {EXP: range(12)}, shared=shared, rows=8)
    assert sizes == ([(3, False)] if shared else [(1, True)] * 3)
    assert len(measured.outcomes[EXP]) == 12
    assert measured.outcomes[EXP].count(SAME) > 0
