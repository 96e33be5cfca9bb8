"""What a trial's row is asked, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ft2.faults import Injection

if TYPE_CHECKING:
    from ft2.campaign.returned import Returned

__all__ = ["Continuation", "GoldenRow", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """What one row of a call of ``generate`` is asked, decoded greedily.

    Attributes
    ----------
    tokens:
        Token ids, padding left out.
    most, least:
        How many new tokens it gives at most, and how many before it may end.
    ends:
        The token ids that end it.
    returns:
        The fields that are returned beside the tokens.
    """

    tokens: tuple[int, ...]
    most: int
    least: int = 0
    ends: tuple[int, ...] = ()
    returns: frozenset[str] = frozenset()

    def is_over(self, said: Sequence[int]) -> bool:
        """Whether an answer is complete."""
        return len(said) >= self.most or (bool(said) and said[-1] in self.ends)


@dataclass(eq=False)
class GoldenRow:
    """The golden run of one prompt, under the engine's policy.

    Attributes
    ----------
    said:
        The new tokens.
    corrected:
        Values that the policy had corrected after each step.
    """

    prompt: Prompt
    said: list[int]
    corrected: list[int]


@dataclass(frozen=True, eq=False)
class Continuation:
    """What became of one trial.

    Attributes
    ----------
    said:
        The new tokens, from the prompt's end on.
    injection:
        What became of the fault.
    corrected:
        Values that the policy corrected in this run, those before the fault included.
    returned:
        What it returns beside the tokens; None if that is nothing.
    """

    said: list[int]
    injection: Injection
    corrected: int
    returned: Returned | None = None
