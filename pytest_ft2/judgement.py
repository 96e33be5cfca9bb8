"""From one trial's run to its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ft2.campaign import Outcome, Run, is_harness_error, is_sticky, outcome_of
from pytest_ft2.attempt import Attempt
from pytest_ft2.deadline import TrialTimeout

__all__ = ["Proof", "first_line", "judge", "machine_error", "read_proof", "sticky_error"]


@dataclass(frozen=True)
class Proof:
    """What a fault and the protection did, as the device tells when it is asked.

    Attributes
    ----------
    lost:
        The error with which the device answered instead, or None.
    """

    before: float | None = None
    after: float | None = None
    landed: bool | None = False
    corrected: int | None = None
    lost: BaseException | None = None


def read_proof(run: Run) -> Proof:
    """Read what became of the run's fault; an unusable device shows here at the latest."""
    injection = run.injection
    try:
        corrected = run.corrected
        if injection is None:
            return Proof(corrected=corrected)
        return Proof(injection.before, injection.after, injection.landed, corrected)
    except RuntimeError as error:
        if not is_sticky(error):
            raise
        return Proof(landed=None, lost=error)


def judge(
    result: Attempt, run: Run, proof: Proof, usual_errors: int
) -> tuple[Outcome | None, str | None]:
    """Return the outcome, or None and a sentence when the harness could not find out.

    Parameters
    ----------
    usual_errors:
        How many exceptions leave the model without any fault.
    """
    if run.attach_error is not None:
        return None, f"ft2 could not attach to the model: {run.attach_error}."
    error = machine_error(result, run)
    if error is not None:
        return None, f"memory ran out ({error}): use a smaller model or fewer workers."
    if proof.lost is not None:
        shown = first_line(str(proof.lost))
        return None, f"the device was lost, and with it the proof that the fault landed ({shown})."
    # An error that the test provokes and handles without any fault too is none that a fault brings.
    model_raised = len(run.errors) > usual_errors
    for phase, (raised, line) in result.failed.items():
        if isinstance(raised, TrialTimeout) or result.timed_out:
            continue
        if phase != "call" and not model_raised:
            return None, f"the {phase} of the test failed, not its assertion ({line})."
    if result.skipped is not None:
        return None, f"the test skipped only with the fault ({result.skipped})."
    expected = result.xfailed or result.xpassed
    if expected is not None:
        return None, f"the test is expected to fail only with the fault ({expected})."
    if run.injection is None:
        return None, "no model was there to inject the fault into."
    if not run.injection.fired:
        return None, (
            "the fault did not land, its element was never computed: with the protection the test "
            "calls the model differently, or the model does not see what is attached to it."
        )
    if not proof.landed:
        return None, "the fault did not land, the value's bits are as before."
    raised_by_fault = model_raised or sticky_error(result, run) is not None
    return outcome_of(result.passed, raised_by_fault, result.timed_out), None


def machine_error(result: Attempt, run: Run) -> BaseException | None:
    """Return the error that speaks of the machine's memory, wherever in the test it showed."""
    return next(filter(is_harness_error, _errors(result, run)), None)


def sticky_error(result: Attempt, run: Run) -> BaseException | None:
    """Return the error that leaves the device unusable, wherever in the test it showed."""
    return next(filter(is_sticky, _errors(result, run)), None)


def first_line(text: str) -> str:
    """Return the first line of what an error says."""
    return next(iter(text.splitlines()), "no message")


def _errors(result: Attempt, run: Run) -> Iterator[BaseException]:
    yield from run.errors
    yield from (error for error, _ in result.failed.values() if error is not None)
