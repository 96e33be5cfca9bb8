"""What every protection policy has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from ft2.forward import Call, Clock, Listener

__all__ = ["Policy"]


class Policy(Listener, ABC):
    """Which layers of a model are protected, and how.

    A policy hears of the model's calls as a listener does, and names the layers whose outputs go
    through it. One policy object serves one model, from attaching to removing.
    """

    @abstractmethod
    def transforms(self, model: nn.Module, clock: Clock) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return, by layer name, what replaces that layer's output."""

    @property
    @abstractmethod
    def counts(self) -> list[int]:
        """Corrected values of each request, oldest first; of the last 1,000 calls."""

    @abstractmethod
    def corrected(self, call: Call) -> list[int]:
        """Return the corrected values of each request of `call` so far; reading waits for it.

        Empty for a call in which nothing is protected.
        """

    @property
    @abstractmethod
    def left_first_token(self) -> bool:
        """Whether anything was protected after a first token."""
