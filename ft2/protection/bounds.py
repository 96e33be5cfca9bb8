"""The bounds and counters of the requests that one call computes together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ft2.protection.arithmetic import (
    bounds_dtype,
    clean_vectors,
    learn,
    record_vectors,
    restrict,
    restrict_vectors,
    widen,
)

__all__ = ["Corrections", "RequestBounds", "Where"]

Key = tuple[str, int]


class Corrections:
    """How many values of each request were corrected, counted on every device that corrects.

    Parameters
    ----------
    requests:
        How many requests.
    """

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self._counters: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """Return the device's counter, int64 (requests,), to be updated in place."""
        if device not in self._counters:
            # Made outside inference mode, a tensor can be updated inside and outside of it.
            with torch.inference_mode(False):
                self._counters[device] = torch.zeros(
                    self.requests, dtype=torch.int64, device=device
                )
        return self._counters[device]

    def totals(self) -> list[int]:
        """Return the sum over all devices for each request; this waits for them."""
        totals = [0] * self.requests
        for counter in self._counters.values():
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
    """

    def __init__(self, rows: int, rows_per_request: int, scale: float) -> None:
        self.rows = rows
        self.requests = rows // rows_per_request if rows % rows_per_request == 0 else rows
        self.scale = scale
        self.corrections = Corrections(self.requests)
        self._learned: dict[Key, tuple[Tensor, Tensor, torch.dtype]] = {}
        self._widened: dict[Key, tuple[Tensor, Tensor]] = {}
        self._cells: dict[Key, VectorBounds] = {}

    @property
    def settled(self) -> bool:
        """Whether any key is restricted by now."""
        return bool(self._widened) or any(cells.settled for cells in self._cells.values())

    def settle(self) -> None:
        """Widen what was learned: from now on the keys that ran before are restricted."""
        for cells in self._cells.values():
            cells.settle(self.scale)
        if len(self._widened) == len(self._learned):
            return
        with torch.inference_mode(False), torch.no_grad():
            for key, (low, high, dtype) in self._learned.items():
                if key not in self._widened:
                    self._widened[key] = widen(low, high, self.scale, dtype, self.rows)

    def learned(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """Return the minimum and maximum seen, each (requests,); None if the key never ran."""
        return self._learned[key][:2] if key in self._learned else None

    def protect(self, key: Key, output: Tensor, real: Tensor | None, live: Tensor | None) -> Tensor:
        """Learn from a layer's output or restrict it, and return what goes on in its place.

        Parameters
        ----------
        key:
            The layer's name and its first column.
        output:
            (rows, tokens, columns).
        real:
            bool (rows, tokens), False at padding; None when all tokens are real.
        live:
            bool (rows, tokens or 1), False also for rows that have ended; None when all count.
        """
        corrected = self.corrections.on(output.device)
        if key in self._widened:
            return restrict(output, live, *self._widened[key], corrected)
        # An expert that no token of the prompt chose learns on the step that first runs it.
        if key not in self._learned:
            self._learned[key] = (*_nothing_learned(self.requests, output), output.dtype)
        return learn(output, real, *self._learned[key][:2], corrected)

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
            self._cells[key] = VectorBounds(low, high, values.dtype)
        return self._cells[key].protect(values, where, self.corrections.on(values.device))


class VectorBounds:
    """Bounds of each expert and request, for vectors in any order.

    An expert that no token of a request's prompt chose learns on the step that first runs it.
    """

    def __init__(self, low: Tensor, high: Tensor, dtype: torch.dtype) -> None:
        self._low = low
        self._high = high
        self._dtype = dtype
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
        if self._widened is None:
            clean = clean_vectors(values, where.real, where.request, corrected)
            record_vectors(values, where.real, where.cell, self._low, self._high)
            return clean
        below, above, unknown = self._widened
        limits = below[where.cell], above[where.cell]
        restricted = restrict_vectors(values, where.live, *limits, where.request, corrected)
        is_new = unknown[where.cell]
        counted = is_new if where.real is None else is_new & where.real
        record_vectors(values, counted, where.cell, self._low, self._high)
        return restricted


def _nothing_learned(requests: int, output: Tensor) -> tuple[Tensor, Tensor]:
    dtype = bounds_dtype(output.dtype)
    # Made outside inference mode, a tensor can be updated inside and outside of it.
    with torch.inference_mode(False):
        low = torch.full((requests,), torch.inf, dtype=dtype, device=output.device)
        return low, -low
