"""Hand a run the answers that were computed for it, as long as it asks for exactly these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ft2.campaign.asked import Asked
from ft2.campaign.prompt import Continuation
from ft2.campaign.returned import GoldenReturned, whole
from ft2.faults import Injection

__all__ = ["KnownCall", "Replies"]


@dataclass(frozen=True, eq=False)
class KnownCall:
    """What one call of a golden run asks, and what it is told under the trials' protection.

    Attributes
    ----------
    said:
        The new tokens of each row.
    corrected:
        How many values of each row the protection corrected.
    returned:
        What it returns beside the tokens; None if that is nothing.
    """

    asked: Asked
    said: list[list[int]]
    corrected: list[int]
    returned: GoldenReturned | None = None


class Replies:
    """The answers to one trial.

    Parameters
    ----------
    calls:
        The calls of the golden run, in order.
    call, row:
        Which of them, and which of its rows, the fault strikes.
    continuation:
        What became of that row.

    Attributes
    ----------
    delivered:
        Whether the answer with the fault was handed out.
    went_elsewhere:
        Whether the run asked for something else before: then it shows nothing.
    corrected:
        How many values were corrected in the answers that were handed out.
    """

    def __init__(
        self, calls: Sequence[KnownCall], call: int, row: int, continuation: Continuation
    ) -> None:
        self.delivered = False
        self.went_elsewhere = False
        self.corrected = 0
        self._calls = calls
        self._call, self._row = call, row
        self._continuation = continuation
        self._running = -1

    @property
    def injection(self) -> Injection:
        """What became of the fault."""
        return self._continuation.injection

    def begin(self, number: int, kind: str) -> None:
        """A call begins."""
        self._running = number
        if kind != "generate" and not self.delivered:
            self.went_elsewhere = True

    def answer(self, asked: Asked) -> Any:
        """Return what the running call is told, or None if that is not known."""
        number = self._running
        known = self._calls[number] if number < len(self._calls) else None
        if known is None or self.went_elsewhere or not known.asked.is_as(asked):
            self.went_elsewhere |= not self.delivered
            return None
        said, corrected = list(known.said), list(known.corrected)
        trial = None
        if number == self._call:
            said[self._row] = self._continuation.said
            corrected[self._row] = self._continuation.corrected
            self.delivered = True
            trial = self._continuation.returned
        self.corrected += sum(corrected)
        sequences = asked.sequences(said)
        if known.returned is None:
            return sequences
        return whole(known.returned, sequences, asked.cache, asked.prompts[0], trial)
