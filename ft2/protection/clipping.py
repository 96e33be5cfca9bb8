"""Clip the outputs of whole layers to the bounds of the running request, in little time.

Eager layers use a native operation each. To fold it into the sum or product that follows would save
a launch, but to find that out in Python takes longer than launching. Compiled layers use plain
torch, which is folded into the neighbouring kernels; what they corrected is counted by one native
operation at the end of the forward, since counting there would turn those kernels into reductions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from ft2.forward import Lane, hears_nothing
from ft2.native import Operation
from ft2.native.direct import hears_no_operations
from ft2.protection.arithmetic import clip, count_corrected
from ft2.protection.bounds import Key, RequestBounds
from ft2.protection.learning import Learning
from ft2.protection.resident import Resident

__all__ = ["ClippingLane"]


class ClippingLane(Lane):
    """What becomes of the outputs of critical layers.

    Parameters
    ----------
    keys:
        The layers' keys, in the order of their seats.
    otherwise:
        Called with a key and an output whenever the lane itself does nothing with it: on the first
        token, for layers that have learned nothing yet, for those that record gradients. Returns
        what goes on in its place.
    """

    def __init__(self, keys: list[Key], otherwise: Callable[[Key, Tensor], Tensor]) -> None:
        super().__init__()
        self._keys = keys
        self._otherwise = otherwise
        self._residents: dict[tuple[int, torch.device, torch.dtype], Resident] = {}
        self._resident: Resident
        self._kind: tuple[torch.device, torch.dtype] | None = None
        self._restrict_at: Operation
        self._restrict_directly: Callable[[Tensor, int], bool] | None = None
        self._idle: list[int | None] = [None for _ in keys]
        # What the layers of the running forward use; compiled layers guard on what they read.
        self._addresses = self._idle
        self._is_clipping = False
        self._learning: Learning | None = None
        self._counts_later = False
        self._waiting: list[tuple[int, Tensor]] = []

    def begin(self, request: RequestBounds, live: Tensor | None) -> None:
        """Clip to what `request` has learned, until :meth:`end`; nothing, if that is not enough.

        Parameters
        ----------
        request:
            The bounds and counters of the requests that run.
        live:
            bool (rows, tokens or 1), False where corrections are not counted; None when all are.
        """
        self.end()
        kind = request.kind
        if kind is None or (live is not None and live.shape != (request.requests, 1)):
            return
        self._kind = kind
        self._resident = self._resident_of(request, *kind)
        self._resident.hold(request, live)
        self.resume()

    def learn(self, request: RequestBounds, real: Tensor | None) -> None:
        """Let `request` learn from the outputs until :meth:`end`.

        Parameters
        ----------
        request:
            The bounds and counters of the requests that run.
        real:
            bool (rows, tokens), False at padding; None when all tokens are real.
        """
        self.end()
        self.is_direct = hears_nothing() and not self.wardrobe.is_for_compiled
        # What the layers put out is known from the request before. Where the tokens that a layer
        # has must be looked at, the long way does.
        kind = None if real is not None or request.settled else self._kind
        if self.is_direct and kind is not None and hears_no_operations():
            resident = self._resident_of(request, *kind)
            if resident.places:
                self._learning = Learning(self._keys, request, resident)

    def resume(self) -> None:
        """Clip to what the last :meth:`begin` was given, until :meth:`end`."""
        resident = self._resident
        self._is_clipping = True
        self._counts_later = bool(resident.addresses) and not torch.is_grad_enabled()
        # Compiled code does without ways past a module's call and past torch.
        if self.wardrobe.is_for_compiled:
            return
        self.is_direct = hears_nothing()
        # Who traces keeps what is computed, and an address is good for as long as this lane.
        if self._counts_later and hears_no_operations():
            self._addresses = resident.addresses
            self._restrict_at = resident.restrict_at
            direct = resident.direct
            self._restrict_directly = None if direct is None else direct.restrict

    def end(self) -> None:
        """Clip nothing more until the next :meth:`begin`."""
        self._addresses = self._idle
        self._is_clipping = False
        self.is_direct = False
        self._waiting.clear()
        learning, self._learning = self._learning, None
        if learning is not None:
            learning.end()

    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        address = self._addresses[seat]
        # Gradients can be turned on within a forward that began without them.
        if address is not None and not output.requires_grad:
            # A mode may have begun within the forward, and what it records keeps no address. To ask
            # for a tracer of TorchScript too would take longer, in a step, than to restrict.
            if type(output) is not Tensor or _python_dispatch._is_in_torch_dispatch_mode:
                return self._otherwise(self._keys[seat], output)
            directly = self._restrict_directly
            if directly is None or not directly(output, address):
                self._restrict_at(output, address)
            return output
        if self._learning is not None and self._learning.takes(seat, output):
            return output
        return self._otherwise(self._keys[seat], output)

    def traced(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        if not self._is_clipping or seat in self._resident.late:
            return self._otherwise(self._keys[seat], output)
        resident = self._resident
        bounds = resident.bounds[seat]
        values = output.reshape(bounds.shape[1], -1, output.shape[-1])
        clipped = clip(values, bounds[0][:, None, None], bounds[1][:, None, None])
        if self._counts_later and output.dtype == resident.dtype and output.is_contiguous():
            self._waiting.append((seat, output))
        else:
            count_corrected(values, clipped, resident.live, resident.corrected)
        return clipped.view(output.shape)

    def finish(self) -> None:
        if not self._waiting:
            return
        resident = self._resident
        seats = [seat for seat, _ in self._waiting]
        bounds = resident.bounds
        if seats != list(range(len(self._keys))):
            bounds = torch.stack([bounds[seat] for seat in seats])
        outputs = [output for _, output in self._waiting]
        resident.count_outside(outputs, bounds, resident.corrected, resident.live)
        self._waiting.clear()

    def _resident_of(
        self, request: RequestBounds, device: torch.device, dtype: torch.dtype
    ) -> Resident:
        place = (request.requests, device, dtype)
        if place not in self._residents:
            self._residents[place] = Resident(self._keys, *place)
        return self._residents[place]
