"""What every protection policy has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

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

    def requests_of(self, call: Call) -> object:
        """Return what is known of a call's requests, for :meth:`join`; also of another policy."""
        return None

    def join(self, call: Call, rows: int, requests: Tensor, others: object, theirs: Tensor) -> None:
        """Let requests of a call go on where requests of another call stand.

        Parameters
        ----------
        call, rows:
            The call that they join, and how many rows its forwards have, each a request.
        requests:
            int64 (joining,): which of its requests; what these had is overwritten.
        others:
            What :meth:`requests_of` returned for the other call, by a policy of this kind.
        theirs:
            int64 (joining,): which of those requests.

        Raises
        ------
        NotImplementedError
            If a request cannot be moved; unless overridden, none can.
        """
        raise NotImplementedError(f"{type(self).__name__} does not move requests between calls")
