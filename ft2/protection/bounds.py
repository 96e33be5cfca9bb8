"""The bounds and counters of the requests that one call computes together."""

from __future__ import annotations

from collections.abc import Sequence
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
        self._learned: dict[Key, _Table] = {}
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
        table = self._learned.get(key)
        if table is None:
            return None
        low, high = table.of(key)
        return low, high

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
            If experts have bounds: those are learned while a request goes on. If other layers ran
            in the others than in requests that joined before.
        """
        if other._cells:
            raise NotImplementedError("experts learn bounds while a request goes on")
        with torch.inference_mode(False), torch.no_grad():
            for place, table in other._tables.items():
                if place not in self._tables:
                    self._table(*place).adopt(table)
                    self._learned |= dict.fromkeys(table.keys, self._table(*place))
                self._table(*place).join(requests, table, theirs)
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
        return learn(output, real, self._of(key, output.device, output.dtype), corrected)

    def take(self, keys: Sequence[Key], seen: Tensor, dtype: torch.dtype) -> None:
        """Learn what was recorded of layers' outputs.

        Parameters
        ----------
        keys:
            Whose it is, in the order in which they ran.
        seen:
            (keys, 2, requests), the lowest and the highest values, on the outputs' device; copied.
        dtype:
            Of the outputs.
        """
        if not self._learned:
            table = self._table(seen.device, dtype)
            table.take(keys, seen)
            self._learned = dict.fromkeys(keys, table)
            return
        for key, (lowest, highest) in zip(keys, seen, strict=True):
            low, high = self._of(key, seen.device, dtype)
            low.copy_(torch.minimum(low, lowest.to(low)))
            high.copy_(torch.maximum(high, highest.to(high)))

    def _of(self, key: Key, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return what a layer has learned, (2, requests), to be updated in place.

        A layer whose outputs come in several types has one place, of the type that came first.
        """
        if key not in self._learned:
            self._learned[key] = self._table(device, dtype)
            self._learned[key].add(key)
        return self._learned[key].of(key)

    def _table(self, device: torch.device, dtype: torch.dtype) -> _Table:
        if (device, dtype) not in self._tables:
            self._tables[device, dtype] = _Table(self.requests, device, dtype)
        return self._tables[device, dtype]

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

    Attributes
    ----------
    keys:
        Of the layers, in the order of their bounds.
    """

    def __init__(self, requests: int, device: torch.device, dtype: torch.dtype) -> None:
        self.keys: list[Key] = []
        self._requests = requests
        self._device = device
        self._dtype = dtype
        self._at: dict[Key, int] = {}
        # All but the last are full, so that tables with the same keys are alike.
        self._chunks: list[Tensor] = []
        self._places: list[Tensor] = []
        self._widened: list[Tensor] = []

    def adopt(self, other: _Table) -> None:
        """Have a place for each key of `other`, in its order, that nothing was learned for."""
        for key in other.keys:
            self.add(key)

    def join(self, requests: Tensor, other: _Table, theirs: Tensor) -> None:
        """Copy what was learned for requests of `other` to requests here."""
        if self._at.keys() != other._at.keys():
            raise NotImplementedError("other layers ran in these requests than in those before")
        requests, theirs = requests.to(self._device), theirs.to(self._device)
        chunks = other._chunks
        if self.keys != other.keys:
            order = torch.tensor([other._at[key] for key in self.keys], device=self._device)
            chunks = torch.cat(chunks)[order].split(_CHUNK)
        for here, there in zip(self._chunks, chunks, strict=True):
            here[: len(there)].index_copy_(2, requests, there.index_select(2, theirs))

    def add(self, key: Key) -> None:
        """Have a place for `key` that nothing was learned for."""
        if len(self.keys) == _CHUNK * len(self._chunks):
            self._chunks += self._nothing_learned(1).unbind()
        self._at[key] = len(self.keys)
        self.keys.append(key)

    def of(self, key: Key) -> Tensor:
        """Return what was learned for a key, (2, requests), to be updated in place."""
        # Cutting them off one by one takes as long as learning does.
        for chunk in self._chunks[len(self._places) // _CHUNK :]:
            self._places += chunk.unbind()
        return self._places[self._at[key]]

    def take(self, keys: Sequence[Key], seen: Tensor) -> None:
        """Have places for keys, in this order, that (keys, 2, requests) was learned for.

        There must be none yet.
        """
        chunks = self._nothing_learned(-(-len(keys) // _CHUNK))
        chunks.view(-1, 2, self._requests)[: len(keys)] = seen
        self._chunks = list(chunks.unbind())
        self._at = {key: place for place, key in enumerate(keys)}
        self.keys = list(keys)

    def _nothing_learned(self, count: int) -> Tensor:
        """Return so many chunks, adjacent, of places that nothing was learned for."""
        shape = (count, _CHUNK, 2, self._requests)
        # Made outside inference mode, a tensor can be updated inside and outside of it.
        with torch.inference_mode(False):
            chunks = torch.empty(shape, dtype=bounds_dtype(self._dtype), device=self._device)
            chunks[:, :, 0] = torch.inf
            chunks[:, :, 1] = -torch.inf
        return chunks

    def widened(self, scale: float) -> dict[Key, Tensor]:
        """Return bounds (2, requests), widened, for every key."""
        with torch.inference_mode(False), torch.no_grad():
            self._widened = [self._widen(chunk, scale) for chunk in self._chunks]
        found = (bounds for chunk in self._widened for bounds in chunk)
        return dict(zip(self.keys, found, strict=False))

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
