"""What every protection policy has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ft2.forward import Call, Clock, Listener, Tap

__all__ = ["Policy", "Recomputations"]


@dataclass(eq=False)
class Recomputations:
    """What became of a call's detections; each list has a number for each request.

    Attributes
    ----------
    requests:
        How many requests the call has.
    detected:
        Detections: forwards in which a row of the request was flagged, times such rows.
    recomputed:
        Recomputations for its sake.
    corrected:
        Detections that a recomputation showed no more.
    kept:
        Detections that it showed again at the same place: genuine values, and permanent faults.
    """

    requests: int
    detected: list[int] = field(init=False)
    recomputed: list[int] = field(init=False)
    corrected: list[int] = field(init=False)
    kept: list[int] = field(init=False)

    def __post_init__(self) -> None:
        for counts in ("detected", "recomputed", "corrected", "kept"):
            setattr(self, counts, [0] * self.requests)

    def add(self, flagged: Sequence[bool], stayed: Sequence[bool], count: int) -> None:
        """Count one forward.

        Parameters
        ----------
        flagged, stayed:
            Of each row whether it was flagged, and whether it was in the last recomputation.
        count:
            How often the forward was recomputed.
        """
        rows_each = len(flagged) // self.requests
        for request in range(self.requests):
            rows = range(request * rows_each, (request + 1) * rows_each)
            found = sum(flagged[row] for row in rows)
            kept = sum(stayed[row] for row in rows)
            self.detected[request] += found
            self.recomputed[request] += count if found else 0
            self.corrected[request] += found - kept
            self.kept[request] += kept

    def join(self, requests: Iterable[int], others: Recomputations, theirs: Iterable[int]) -> None:
        """Let requests have the counts of others."""
        for here, there in zip(requests, theirs, strict=True):
            self.detected[here] = others.detected[there]
            self.recomputed[here] = others.recomputed[there]
            self.corrected[here] = others.corrected[there]
            self.kept[here] = others.kept[there]


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

    @property
    def recomputations(self) -> list[Recomputations]:
        """What became of each call's detections, if the policy recomputes; the last 1,000."""
        return []

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
