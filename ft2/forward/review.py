"""What looks at a forward before anybody else learns what it computed, and may reject it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ft2.forward.call import Forward

__all__ = ["Reviewer"]


class Reviewer(ABC):
    """Rejects forwards, which are then computed again, and says what is returned in the end.

    A recomputation is no step: it is announced to no listener, and no fault strikes in it.
    """

    @abstractmethod
    def rejects(self, forward: Forward, output: Any) -> bool:
        """Whether `forward` is to be computed again, all that it changed having been undone."""

    @abstractmethod
    def accepted(self, forward: Forward, output: Any) -> Any:
        """Return what the forward's caller gets, in place of the `output` that was not rejected."""
