"""What every protection policy has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from ft2.forward import Call, Clock, Listener, Tap

__all__ = ["Policy"]


class Policy(Listener, ABC):
    """Which layers of a model are protected, and how.

    A policy hears of the model's calls as a listener does, and taps the layers whose outputs go
    through it. One policy object serves one model, from attaching to removing.
    """

    @abstractmethod
    def find(self, model: nn.Module) -> list[Any]:
        """Return the layers of `model` that are protected, in the policy's own terms.

        Raises
        ------
        UnsupportedModelError
            If there are none that the policy could protect.
        ProfileError
            If the bounds that it was given are not this model's.
        """

    @abstractmethod
    def attach(self, model: nn.Module, layers: list[Any], clock: Clock) -> list[Tap]:
        """Tap what :meth:`find` returned."""

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
