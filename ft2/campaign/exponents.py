"""Read the exponents of what a run computes: those of the space, and those at given sites."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

import torch
from torch import Tensor

from ft2.faults import Execution, Fault, NumberFormat, Space, exponents

__all__ = ["ExponentReader"]

# Small outputs are read many at a time; of this many elements, what waits is read.
_MANY = 1 << 20


@dataclass(frozen=True)
class _Counted:
    """How many elements of one step have which exponent field; those that none has left out.

    Attributes
    ----------
    place:
        The call and the step.
    layers, exponents, counts:
        int64 (entries,): numbers of the layers, exponent fields, and elements.
    """

    place: tuple[int, int]
    layers: Tensor
    exponents: Tensor
    counts: Tensor


@dataclass
class _Waiting:
    """Outputs of one step, on one device, that are still to be read.

    Attributes
    ----------
    layers:
        The number of each output's layer.
    outputs:
        (elements,) each, in the reader's format.
    elements:
        How many elements they have together.
    keys, sites:
        The keys of the sites in them, and which of these elements they are.
    """

    layers: list[int] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    elements: int = 0
    keys: list[int] = field(default_factory=list)
    sites: list[int] = field(default_factory=list)


class ExponentReader:
    """Reads the exponent fields of one recorded run's elements.

    Parameters
    ----------
    encoding:
        The format whose exponent is read; values of another dtype are converted to it.
    sites:
        Faults whose elements are looked up, by keys of any meaning.
    """

    def __init__(self, encoding: NumberFormat, sites: Mapping[int, Fault]) -> None:
        self._encoding = encoding
        self._bins = 1 << encoding.exponent_bits
        self._sites: dict[tuple[int, int, str], list[tuple[int, Fault]]] = {}
        for key, fault in sites.items():
            place = (fault.call, fault.step, fault.layer)
            self._sites.setdefault(place, []).append((key, fault))
        self.start()

    def start(self) -> None:
        """Forget what was read: a run begins."""
        self._found: dict[int, int] = {}
        self._numbers: dict[str, int] = {}
        self._place = (0, 0)
        self._waiting = _Waiting()
        self._counted: list[_Counted] = []

    def read(self, call: int, step: int, execution: Execution, values: Tensor) -> None:
        """Read what one run of a layer computed.

        Parameters
        ----------
        call, step:
            When it ran.
        execution:
            The run of the layer.
        values:
            (real tokens, columns), any floating-point dtype: its output, of the tokens of
            `execution.real` in their order. It is kept for a while, and must not change.
        """
        output = values.detach().to(self._encoding.dtype).flatten()
        waiting = self._waiting
        if waiting.outputs and (
            (call, step) != self._place
            or output.device != waiting.outputs[0].device
            or waiting.elements >= _MANY
        ):
            self._read_waiting()
            waiting = self._waiting
        self._place = (call, step)
        for key, element in self._looked_up(call, step, execution):
            waiting.keys.append(key)
            waiting.sites.append(waiting.elements + element)
        waiting.layers.append(self._numbers.setdefault(execution.layer, len(self._numbers)))
        waiting.outputs.append(output)
        waiting.elements += len(output)

    @property
    def found(self) -> Mapping[int, int]:
        """The exponent fields of the sites that the run computed, by their keys."""
        self._read_waiting()
        return self._found

    def masses(self, space: Space) -> dict[tuple[str, str, int], float]:
        """Return the share of the space that each exponent field has, in each layer and phase.

        Parameters
        ----------
        space:
            The sites of the run that was read.

        Returns
        -------
        dict
            By layer, phase (``first`` or ``later``) and exponent field; the shares add up to 1.
            What has none is left out.

        Raises
        ------
        ValueError
            If it was another run that was read.
        """
        self._read_waiting()
        sizes = {(step.call, step.step): step.elements for step in space.steps if step.elements}
        read = dict.fromkeys(sizes, 0)
        size = len(self._numbers) * 2 * self._bins
        masses = torch.zeros(size, dtype=torch.float64, device="cpu")
        for counted in self._counted:
            if counted.place not in sizes:
                raise ValueError(f"the run that was read has another step: {counted.place}")
            read[counted.place] += int(counted.counts.sum())
            later = int(counted.place[1] > 0)
            cells = (counted.layers * 2 + later) * self._bins + counted.exponents
            weight = 1 / (sizes[counted.place] * len(sizes))
            masses.index_add_(0, cells, counted.counts.double() * weight)
        if read != sizes:
            raise ValueError("the run that was read computed other elements than the space has")
        names = list(self._numbers)
        found = masses.nonzero()[:, 0]
        shares: dict[tuple[str, str, int], float] = {}
        for cell, mass in zip(found.tolist(), masses[found].tolist(), strict=True):
            place, exponent = divmod(cell, self._bins)
            layer, later = divmod(place, 2)
            shares[names[layer], "later" if later else "first", exponent] = mass
        return shares

    def _looked_up(self, call: int, step: int, execution: Execution) -> Iterator[tuple[int, int]]:
        """Yield the keys of the execution's sites, and which of its real elements they are."""
        sites = self._sites.get((call, step, execution.layer))
        if sites is None:
            return
        real = execution.real
        before = list(accumulate((stop - start for _, start, stop in real), initial=0))
        for key, fault in sites:
            token = fault.position - execution.first_position
            # Ranges are in the order of their rows, and within a row of their tokens.
            at = bisect_right(real, (fault.row, token, inf)) - 1
            if at >= 0 and real[at][0] == fault.row and token < real[at][2]:
                token += before[at] - real[at][1]
                yield key, token * execution.columns + fault.neuron

    def _read_waiting(self) -> None:
        waiting = self._waiting
        if not waiting.outputs:
            return
        self._waiting = _Waiting()
        fields = exponents(torch.cat(waiting.outputs), self._encoding)
        device = fields.device
        runs = torch.arange(len(waiting.outputs), device=device).repeat_interleave(
            torch.tensor([len(output) for output in waiting.outputs], device=device),
            output_size=waiting.elements,
        )
        size = len(waiting.outputs) * self._bins
        counts = torch.bincount(runs * self._bins + fields, minlength=size)
        chosen = fields[torch.tensor(waiting.sites, dtype=torch.int64, device=device)]
        # One copy from the device for both.
        read = torch.cat([counts, chosen]).cpu()
        for key, exponent in zip(waiting.keys, read[size:].tolist(), strict=True):
            # Where an element is computed twice, the fault strikes the first time.
            self._found.setdefault(key, exponent)
        # Most fields are in no value.
        cells = read[:size].nonzero()[:, 0]
        layers = torch.tensor(waiting.layers, device="cpu")[cells // self._bins]
        self._counted.append(_Counted(self._place, layers, cells % self._bins, read[cells]))
