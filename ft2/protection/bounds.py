"""The bounds and counters of the requests that one call computes together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ft2.protection.arithmetic import (
    bounds_dtype,
    clean_vectors,
    record_vectors,
    widen,
)
from ft2.protection.correction import CLIP, Correction
from ft2.protection.kernels import learn

__all__ = ["Corrections", "Key", "RequestBounds", "Where"]

Key = tuple[str, int]

_CHUNK = 64


class Corrections:
    """How many values of each request were corrected, counted on every device that corrects.

    Parameters
    ----------
    requests:
        How many requests.

    Attributes
    ----------
    counters:
        Of each device that has corrected, int64 (requests,).
    """

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.counters: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """Return the device's counter, int64 (requests,), to be updated in place."""
        if device not in self.counters:
            # Made outside inference mode, a tensor can be updated inside and outside of it.
            with torch.inference_mode(False):
                self.counters[device] = torch.zeros(self.requests, dtype=torch.int64, device=device)
        return self.counters[device]

    def totals(self) -> list[int]:
        """Return the sum over all devices for each request; this waits for them."""
        totals = [0] * self.requests
        for counter in self.counters.values():
            totals = [a + b for a, b in zip(totals, counter.tolist(), strict=True)]
        return totals


@dataclass(frozen=True, eq=False)
class Where:
    """Which bounds each of a list of vectors has.

    Attributes
    ----------
    cell:
        int64 (vectors,): the expert times the number of requests, plus the request.
    request:
        int64 (vectors,).
    real, live:
        bool (vectors,), as in :meth:`RequestBounds.protect`; None when all are.
    matrices:
        How many experts there are, 1 where there are none.
    """

    cell: Tensor
    request: Tensor
    real: Tensor | None
    live: Tensor | None
    matrices: int


class RequestBounds:
    """Per request and per range of a layer's columns: bounds learned on the first token.

    Rows of one request (its beams) share bounds, so reordering beams keeps them together. A key
    learns until :meth:`settle`, and is restricted from then on.

    Parameters
    ----------
    rows:
        Rows of the batch.
    rows_per_request:
        How many of them belong to one request.
    scale:
        How far bounds are widened, at least 1.
    correction:
        What is done with values out of bounds.

    Attributes
    ----------
    version:
        Changes whenever widened bounds do.
    """

    def __init__(
        self, rows: int, rows_per_request: int, scale: float, correction: Correction = CLIP
    ) -> None:
        self.rows = rows
        self.requests = rows // rows_per_request if rows % rows_per_request == 0 else rows
        self.scale = scale
        self.correction = correction
        self.corrections = Corrections(self.requests)
        self._tables: dict[tuple[torch.device, torch.dtype], _Table] = {}
        self._learned: dict[Key, Tensor] = {}
        self._widened: dict[Key, Tensor] = {}
        self._cells: dict[Key, VectorBounds] = {}
        self.version = 0

    @property
    def settled(self) -> bool:
        """Whether any key is restricted by now."""
        return bool(self._widened) or any(cells.settled for cells in self._cells.values())

    @property
    def is_settled(self) -> bool:
        """Whether :meth:`settle` would change nothing."""
        return not self._cells and len(self._widened) == len(self._learned)

    def settle(self) -> None:
        """Widen what was learned: from now on the keys that ran before are restricted."""
        for cells in self._cells.values():
            cells.settle(self.scale)
        if len(self._widened) < len(self._learned):
            self.version += 1
            for table in self._tables.values():
                self._widened |= table.widened(self.scale)

    @property
    def kind(self) -> tuple[torch.device, torch.dtype] | None:
        """Of all layers' outputs; None if they differ, or nothing is restricted by now."""
        return next(iter(self._tables)) if len(self._tables) == 1 and self._widened else None

    def widened(self, key: Key) -> Tensor | None:
        """Return what a layer is restricted to, (2, requests); None if it has learned nothing."""
        return self._widened.get(key)

    def learned(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """Return the minimum and maximum seen, each (requests,); None if the key never ran."""
        bounds = self._learned.get(key)
        return None if bounds is None else (bounds[0], bounds[1])

    def join(self, requests: Tensor, other: RequestBounds, theirs: Tensor) -> None:
        """Let requests go on where requests of another call stand, with their bounds and counts.

        Parameters
        ----------
        requests:
            int64 (joining,): which of these; what they had is overwritten.
        other:
            Where the others have learned; its layers must be those of the requests here.
        theirs:
            int64 (joining,): which of those.

        Raises
        ------
        NotImplementedError
            If experts have bounds: those are learned while a request goes on.
        """
        if other._cells:
            raise NotImplementedError("experts learn bounds while a request goes on")
        with torch.inference_mode(False), torch.no_grad():
            for place, table in other._tables.items():
                if place not in self._tables:
                    self._tables[place] = _Table(self.requests, *place)
                    self._learned |= self._tables[place].adopt(table)
                self._tables[place].join(requests, table, theirs)
            self.settle()
            self.version += 1
            for table in self._tables.values():
                table.widen_again(self.scale)
            for device, counter in other.corrections.counters.items():
                here = self.corrections.on(device)
                here[requests.to(device)] = counter[theirs.to(device)]

    def protect(self, key: Key, output: Tensor, real: Tensor | None, live: Tensor | None) -> Tensor:
        """Learn from a layer's output or restrict it, and return what goes on in its place.

        Parameters
        ----------
        key:
            The layer's name and its first column.
        output:
            (rows, tokens, columns); it may be changed in place.
        real:
            bool (rows, tokens), False at padding; None when all tokens are real.
        live:
            bool (rows, tokens or 1), False also for rows that have ended; None when all count.
        """
        corrected = self.corrections.on(output.device)
        bounds = self._widened.get(key)
        if bounds is not None:
            return self.correction.restrict(output, live, bounds, corrected)
        # A layer that the prompt did not run learns on the step that first runs it.
        if key not in self._learned:
            place = (output.device, output.dtype)
            if place not in self._tables:
                self._tables[place] = _Table(self.requests, *place)
            self._learned[key] = self._tables[place].add(key)
        return learn(output, real, self._learned[key], corrected)

    def protect_vectors(self, key: Key, values: Tensor, where: Where) -> Tensor:
        """Learn from vectors of experts or restrict them, and return what goes on instead.

        Parameters
        ----------
        key:
            The parameter's name and the first column.
        values:
            (vectors, columns).
        where:
            Which bounds each vector has.
        """
        if key not in self._cells:
            low, high = _nothing_learned(where.matrices * self.requests, values)
            self._cells[key] = VectorBounds(low, high, values.dtype, self.correction)
        return self._cells[key].protect(values, where, self.corrections.on(values.device))


class _Table:
    """The bounds of all layers of one dtype on one device, in few tensors.

    Parameters
    ----------
    requests:
        How many requests.
    device, dtype:
        Of the layers' outputs.
    """

    def __init__(self, requests: int, device: torch.device, dtype: torch.dtype) -> None:
        self._requests = requests
        self._device = device
        self._dtype = dtype
        self._keys: list[Key] = []
        self._chunks: list[Tensor] = []
        self._places: list[Tensor] = []
        self._widened: list[Tensor] = []

    def adopt(self, other: _Table) -> dict[Key, Tensor]:
        """Have a place for each key of `other`, in its order; return them as :meth:`add` does."""
        return {key: self.add(key) for key in other._keys}

    def join(self, requests: Tensor, other: _Table, theirs: Tensor) -> None:
        """Copy what was learned for requests of `other` to requests here."""
        requests, theirs = requests.to(self._device), theirs.to(self._device)
        for here, there in zip(self._chunks, other._chunks, strict=True):
            here.index_copy_(2, requests, there.index_select(2, theirs))

    def add(self, key: Key) -> Tensor:
        """Return bounds (2, requests) for `key` that nothing was learned for."""
        index = len(self._keys) % _CHUNK
        if index == 0:
            shape = (_CHUNK, 2, self._requests)
            # Made outside inference mode, a tensor can be updated inside and outside of it.
            with torch.inference_mode(False):
                chunk = torch.empty(shape, dtype=bounds_dtype(self._dtype), device=self._device)
                chunk[:, 0] = torch.inf
                chunk[:, 1] = -torch.inf
            self._chunks.append(chunk)
            # Cutting them off one by one takes as long as learning does.
            self._places += chunk.unbind()
        self._keys.append(key)
        return self._places[len(self._keys) - 1]

    def widened(self, scale: float) -> dict[Key, Tensor]:
        """Return bounds (2, requests), widened, for every key."""
        with torch.inference_mode(False), torch.no_grad():
            self._widened = [self._widen(chunk, scale) for chunk in self._chunks]
        found = (bounds for chunk in self._widened for bounds in chunk)
        return dict(zip(self._keys, found, strict=False))

    def widen_again(self, scale: float) -> None:
        """Widen anew what :meth:`widened` returned, in place."""
        for widened, chunk in zip(self._widened, self._chunks, strict=True):
            widened.copy_(self._widen(chunk, scale))

    def _widen(self, chunk: Tensor, scale: float) -> Tensor:
        low, high = chunk[:, 0].flatten(), chunk[:, 1].flatten()
        both = widen(low, high, scale, self._dtype, len(low))
        return torch.stack([each.view(_CHUNK, self._requests) for each in both], 1)


class VectorBounds:
    """Bounds of each expert and request, for vectors in any order.

    An expert that no token of a request's prompt chose learns on the step that first runs it.
    """

    def __init__(
        self, low: Tensor, high: Tensor, dtype: torch.dtype, correction: Correction
    ) -> None:
        self._low = low
        self._high = high
        self._dtype = dtype
        self._correction = correction
        self._widened: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def settled(self) -> bool:
        """Whether any vector is restricted by now."""
        return self._widened is not None

    def settle(self, scale: float) -> None:
        """Widen what was learned: from now on experts that ran before are restricted."""
        with torch.inference_mode(False), torch.no_grad():
            below, above = widen(self._low, self._high, scale, self._dtype, self._low.shape[0])
            self._widened = below[:, 0, 0], above[:, 0, 0], self._low > self._high

    def protect(self, values: Tensor, where: Where, corrected: Tensor) -> Tensor:
        """Return what goes on in place of `values`, (vectors, columns)."""
        # Some experts are given nothing, rather than left out: that tells nothing of their range.
        speaks = (values.detach() != 0).any(1)
        seen = speaks if where.real is None else speaks & where.real
        if self._widened is None:
            clean = clean_vectors(values, where.real, where.request, corrected)
            record_vectors(values, seen, where.cell, self._low, self._high)
            return clean
        below, above, unknown = (each[where.cell] for each in self._widened)
        below = torch.where(speaks, below, below.clamp(max=0))
        above = torch.where(speaks, above, above.clamp(min=0))
        bounds = torch.stack([below, above])
        restricted = self._correction.restrict_vectors(
            values, where.live, bounds, where.request, corrected
        )
        record_vectors(values, unknown & seen, where.cell, self._low, self._high)
        return restricted


def _nothing_learned(requests: int, output: Tensor) -> tuple[Tensor, Tensor]:
    dtype = bounds_dtype(output.dtype)
    # Made outside inference mode, a tensor can be updated inside and outside of it.
    with torch.inference_mode(False):
        low = torch.full((requests,), torch.inf, dtype=dtype, device=output.device)
        return low, -low
