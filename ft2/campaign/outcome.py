"""What one fault did to one run."""

from __future__ import annotations

from enum import Enum

import torch

__all__ = ["Outcome", "is_harness_error", "is_sticky", "outcome_of"]


class Outcome(str, Enum):
    """The outcome of a trial."""

    MASKED = "masked"
    SDC = "sdc"
    DUE = "due"

    def __str__(self) -> str:
        return self.value


def outcome_of(passed: bool, model_raised: bool, timed_out: bool) -> Outcome:
    """Classify a trial whose fault landed.

    Parameters
    ----------
    passed:
        Whether the test passed: a right answer is a masked fault, however it came about.
    model_raised, timed_out:
        Whether an exception left a call of the model, or the trial took too long. Either makes a
        test that did not pass a detected error rather than a silent one.
    """
    if timed_out:
        return Outcome.DUE
    if passed:
        return Outcome.MASKED
    return Outcome.DUE if model_raised else Outcome.SDC


def is_harness_error(error: BaseException) -> bool:
    """Whether an error says something of the machine, not of the fault: out of memory."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def is_sticky(error: BaseException) -> bool:
    """Whether an error may stay with the device, so that nothing after it proves anything.

    An assertion inside a kernel, say, makes all later work of the process on that device fail.
    """
    return isinstance(error, torch.AcceleratorError)
