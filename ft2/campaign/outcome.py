"""What one fault did to one run."""

from __future__ import annotations

from collections.abc import Iterator
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
    """Whether an error says something of the machine, not of the fault: out of memory.

    That may be what the error was raised from or during, or be inside a group.
    """
    return any(map(_is_out_of_memory, _with_causes(error)))


def is_sticky(error: BaseException) -> bool:
    """Whether an error may stay with the device, so that nothing after it proves anything.

    An assertion inside a kernel, say, makes all later work of the process on that device fail. That
    may be what the error was raised from or during, or be inside a group.
    """
    return any(isinstance(each, torch.AcceleratorError) for each in _with_causes(error))


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, each once: causes can form a circle."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        here = waiting.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        yield here
        # Python 3.10 has groups from a package of the same make.
        inside = getattr(here, "exceptions", ())
        led = (here.__cause__, here.__context__, *(inside if isinstance(inside, tuple) else ()))
        waiting += [each for each in led if isinstance(each, BaseException)]
