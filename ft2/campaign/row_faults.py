"""Faults of a batch's rows as data on the device: which layer, which neuron, which bits.

What strikes them does the same whatever they are, so a recorded forward can strike others each time
that it runs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ft2.faults import Fault, Injection, format_of, number_format
from ft2.forward import Order, attach
from ft2.layers import Projection, projections

__all__ = ["RowFaults", "Strike", "strike_for"]

# Takes (rows, columns), int64 (3, rows), int64 (rows,), and the layer's number.
Strike = Callable[[Tensor, Tensor, Tensor, int], None]

# No number's bits.
_UNTOUCHED = 2**40


@functools.cache
def strike_for(device: torch.device) -> Strike | None:
    """Return what strikes on a device; None if there is nothing."""
    if device.type != "cuda":
        return None
    try:
        strike: Strike = importlib.import_module("ft2.campaign.strike_kernel").strike
        nothing = torch.zeros(3, 2, dtype=torch.int64, device=device)
        strike(nothing.to(torch.float16)[:2], nothing, nothing[0], 1)
    except Exception:
        return None
    return strike


class RowFaults:
    """At most one fault for each row of a batch, all in the next forward.

    Parameters
    ----------
    model:
        The model.
    rows:
        Of the batch.
    strike:
        What flips the bits.
    """

    def __init__(self, model: Any, rows: int, strike: Strike) -> None:
        weight = model.get_input_embeddings().weight
        self._model = model
        self._rows = rows
        self._strike = strike
        self._format = format_of(weight.dtype)
        self._found = projections(model)
        self._numbers = {each.name: number for number, each in enumerate(self._found)}
        self._columns = [each.out_features for each in self._found]
        on_cuda = weight.device.type == "cuda"
        self._host = torch.full((3, rows), -1, dtype=torch.int64, pin_memory=on_cuda)
        self._sent = self._host.to(weight.device, copy=True)
        self._is_clear = True
        self._run: set[int] = set()
        # The patterns that were there before.
        self.before = torch.full((rows,), _UNTOUCHED, dtype=torch.int64, device=weight.device)

    @property
    def unsuited(self) -> str | None:
        """Why this model's faults cannot be data, or None."""
        for each in self._found:
            weight = getattr(self._model.get_submodule(each.module), "weight", None)
            if each.weight is not None or not isinstance(weight, Tensor):
                return f"{each.name} is no module of its own"
            if weight.dtype != self._format.dtype:
                return f"{each.name} computes in another type"
        return None

    def takes(self, fault: Fault) -> bool:
        """Whether a fault can be struck so; any other is left to :func:`ft2.inject`."""
        number = self._numbers.get(fault.layer, -1)
        return (
            number >= 0
            and fault.neuron < self._columns[number]
            and max(fault.bits) < self._format.width
            and (fault.encoding is None or number_format(fault.encoding) is self._format)
        )

    def send(self, faults: Sequence[tuple[int, Fault]]) -> None:
        """Let these strike in the next forward, each in the row of its place, and no others."""
        if self._is_clear and not faults:
            return
        self._host[0] = -1
        if faults:
            width = self._format.width
            columns = []
            for place, fault in faults:
                mask = sum(1 << bit for bit in fault.bits)
                signed = mask - (1 << width) if mask >> (width - 1) else mask
                columns.append((place, self._numbers[fault.layer], fault.neuron, signed))
            places, *rest = torch.tensor(columns).T
            self._host[:, places] = torch.stack(rest)
            self.before.fill_(_UNTOUCHED)
        self._sent.copy_(self._host, non_blocking=True)
        self._is_clear = not faults

    @contextmanager
    def attached(self) -> Generator[None, None, None]:
        """Strike in the forward that is computed, or recorded, inside.

        Raises
        ------
        NotImplementedError
            If it runs a layer several times: each time it would be struck.
        """
        self._run.clear()
        taps = attach(self._model, self._found, Order.INJECT, self._transform, _no_vectors)
        try:
            yield
        finally:
            for tap in taps:
                tap.remove()

    def finish(self, injections: Sequence[tuple[int, Injection]], before: Sequence[int]) -> None:
        """Tell injections what became of them, each by its place.

        Parameters
        ----------
        before:
            What :attr:`before` held after the forward.
        """
        struck = [(place, each) for place, each in injections if before[place] != _UNTOUCHED]
        patterns = torch.tensor([before[place] for place, _ in struck])
        values = patterns.to(self._format.pattern_dtype).view(self._format.dtype)
        for (_, injection), value in zip(struck, values, strict=True):
            injection.strike(value)

    def _transform(self, projection: Projection) -> Callable[[Tensor], Tensor]:
        number = self._numbers[projection.name]

        def transform(output: Tensor) -> Tensor:
            if number in self._run:
                raise NotImplementedError(f"{projection.name} runs several times in a forward")
            self._run.add(number)
            output = output.contiguous()
            self._strike(output.view(self._rows, -1), self._sent, self.before, number)
            return output

        return transform


def _no_vectors(group: list[Projection]) -> Any:
    raise NotImplementedError(f"{group[0].name} is no module of its own")
