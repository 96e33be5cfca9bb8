"""Bounds and counters at addresses that stay, for native operations and compiled code.

A CUDA graph reads and writes the addresses that it was recorded with. So the layers use the bounds
and counters of one table, into which those of the running request are copied. On its first token
it is what they learn into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ft2.native import Operation
from ft2.native.direct import DirectRestriction, RestrictionAt, direct_restriction
from ft2.protection.arithmetic import bounds_dtype
from ft2.protection.bounds import Key, RequestBounds
from ft2.protection.kernels import native_operations

__all__ = ["Resident", "keep_address"]

# No version of what a request has learned.
_UNHELD = -1


class Resident:
    """What the layers use of the request that is running.

    Parameters
    ----------
    keys:
        The layers.
    requests:
        How many requests a call has.
    device, dtype:
        Of the layers' outputs.

    Attributes
    ----------
    dtype:
        Of the layers' outputs.
    bounds:
        (layers, 2, requests), in the dtype of bounds; the type's range where nothing was learned.
    corrected:
        int64 (requests,).
    live:
        bool (requests, 1), whose corrections are counted; None for a single request.
    late:
        The layers, by their places, that have learned nothing yet.
    restrict_at, record_at, count_outside:
        The native operations, if there are any.
    direct:
        The first two past torch; None where there is no such way.
    places:
        Of each layer what the first two take; empty where there is nothing native.
    addresses:
        The same, None where nothing was learned.
    """

    def __init__(
        self, keys: list[Key], requests: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self.live: Tensor | None = None
        self.late: tuple[int, ...] = ()
        self.addresses: list[int | None] = []
        self.places: list[int] = []
        self.direct: DirectRestriction | None = None
        self.restrict_at: Operation
        self.record_at: Operation
        self.count_outside: Operation
        self._keys = keys
        self._owner: RequestBounds | None = None
        self._version = _UNHELD
        self._all_live = True
        limit = torch.finfo(dtype).max
        # Made outside inference mode, a tensor can be updated inside and outside of it.
        with torch.inference_mode(False):
            range_of_type = torch.tensor([[-limit], [limit]], dtype=bounds_dtype(dtype))
            self._unlearned = range_of_type.to(device).expand(2, requests)
            self.bounds = self._unlearned.repeat(len(keys), 1, 1)
            self.corrected = torch.zeros(requests, dtype=torch.int64, device=device)
            if requests > 1:
                self.live = torch.ones(requests, 1, dtype=torch.bool, device=device)
        for each in (self.bounds, self.corrected, self.live):
            if each is not None:
                keep_address(each)
        self._restrictions: list[RestrictionAt] = []
        operations = native_operations(device, dtype)
        if operations is not None:
            self.restrict_at = operations.restrict_at
            self.record_at = operations.record_at
            self.direct = direct_restriction(device.type)
            # Looked up here: compiled code would check each name on the way.
            self.count_outside = torch.ops.ft2.count_outside.default
            self._restrictions = [
                RestrictionAt(bounds, self.corrected, self.live) for bounds in self.bounds.unbind()
            ]
            self.places = [each.address for each in self._restrictions]

    def learn(self, request: RequestBounds) -> None:
        """Take the place of a request's counters, and of bounds that nothing was learned for.

        What is recorded there is to be taken to the request before anything else is held.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._own(request)
            self._version = _UNHELD
            self.bounds[:, 0] = torch.inf
            self.bounds[:, 1] = -torch.inf
            if self.live is not None and not self._all_live:
                self.live.fill_(True)
                self._all_live = True

    def hold(self, request: RequestBounds, live: Tensor | None) -> None:
        """Take the place of a request's bounds and counters, until another one's are held.

        Parameters
        ----------
        request:
            Whose they are.
        live:
            bool (requests, 1), to be copied; None when all count.
        """
        is_held = self._version == request.version and self._is_owned_by(request)
        # Nearly all steps end here.
        if is_held and live is None and self._all_live:
            return
        with torch.inference_mode(False), torch.no_grad():
            if not is_held:
                self._load(request)
            if self.live is not None:
                self._all_live = live is None
                self.live.copy_(live) if live is not None else self.live.fill_(True)

    def _load(self, request: RequestBounds) -> None:
        self._own(request)
        learned = [request.widened(key) for key in self._keys]
        known = [self._unlearned if each is None else each for each in learned]
        torch.stack(known, out=self.bounds)
        self.late = tuple(place for place, each in enumerate(learned) if each is None)
        if self.places:
            self.addresses = [
                None if each is None else place
                for each, place in zip(learned, self.places, strict=True)
            ]
        self._version = request.version

    def _own(self, request: RequestBounds) -> None:
        if self._is_owned_by(request):
            return
        device = self.corrected.device
        if self._owner is not None and self._is_owned_by(self._owner):
            self._owner.corrections.counters[device] = self.corrected.clone()
        self.corrected.copy_(request.corrections.on(device))
        request.corrections.counters[device] = self.corrected
        self._owner = request

    def _is_owned_by(self, request: RequestBounds) -> bool:
        # Where a request's outputs come in several types, the counter can be another's by now.
        counter = request.corrections.counters.get(self.corrected.device)
        return self._owner is request and counter is self.corrected


def keep_address(tensor: Any) -> None:
    """Tell compiled code that a tensor stays where it is, and is not to be copied for each run."""
    torch._dynamo.mark_static_address(tensor, guard=False)
