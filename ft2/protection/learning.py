"""Learn bounds from a first token's outputs in little time, at addresses that stay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from ft2.forward import holds_rows
from ft2.protection.bounds import Key, RequestBounds
from ft2.protection.resident import Resident

__all__ = ["Learning"]


class Learning:
    """Layers' outputs in one forward of a first token, recorded at addresses that stay.

    Parameters
    ----------
    keys:
        The layers' keys, in the order of their seats.
    request:
        What learns from them.
    resident:
        Where they are recorded; it must be native.
    """

    def __init__(self, keys: list[Key], request: RequestBounds, resident: Resident) -> None:
        self._keys = keys
        self._request = request
        self._resident = resident
        self._rows, self._dtype = request.rows, resident.dtype
        self._device = resident.corrected.get_device()
        self._record_at, self._direct = resident.record_at, resident.direct
        self._places = resident.places
        self._ran: list[int] = []

    def takes(self, seat: int, output: Tensor) -> bool:
        """Record a layer's output and correct it in place, unless it is not what was expected."""
        if (
            type(output) is not Tensor
            or _python_dispatch._is_in_torch_dispatch_mode
            or output.dim() > 3
            or not holds_rows(output, self._rows)
            or output.dtype is not self._dtype
            or output.get_device() != self._device
            or output.requires_grad
        ):
            return False
        # Not before it is needed: compiled layers, which never come here, use the request's own.
        if not self._ran:
            self._resident.learn(self._request)
        place, direct = self._places[seat], self._direct
        if direct is None or not direct.record(output, place):
            self._record_at(output, place)
        self._ran.append(seat)
        return True

    def end(self) -> None:
        """Let the request have what was recorded."""
        seats = list(dict.fromkeys(self._ran))
        if not seats:
            return
        seen = self._resident.bounds
        if seats != list(range(len(self._keys))):
            seen = torch.stack([seen[seat] for seat in seats])
        self._request.take([self._keys[seat] for seat in seats], seen, self._dtype)
