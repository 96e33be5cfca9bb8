"""Detect wrong outputs of projections without changing them, in one launch for all of a step.

The outputs are kept until the forward's end, and checked there: against bounds, against their
checksums, or both. Reading the flags waits for the device, so it is left to whoever needs them.

A checksum is the sum over a projection's columns, which equals the inputs times the sum of the
weight's rows (Huang and Abraham, 1984); csrc/checksum.h says how far rounding sets them apart. The
sums of the weights are computed once for each weight. They are kept beside the weight, not as one
more row of it: so the weight stays the model's own tensor, and the row's product costs one pass
over the inputs in the launch that checks.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ft2.forward import Lane, hears_nothing
from ft2.native import load
from ft2.protection.resident import keep_address

__all__ = ["BoundsCheck", "Check", "ChecksumCheck", "DetectionLane"]

# csrc/checksum.h: fp32 outputs carry the rounding of their accumulation too.
_ROUNDOFFS = {torch.float16: 8.0, torch.bfloat16: 8.0, torch.float32: 64.0}


class Check(Protocol):
    """What is made of the outputs of a forward."""

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        """Set the flags of rows with an output that is wrong.

        Parameters
        ----------
        seats:
            The layers that ran, in order.
        hidden, outputs:
            What each was given, and what it computed: (rows, tokens, columns).
        """


class BoundsCheck:
    """Flags rows with a value outside of its layer's bounds.

    Parameters
    ----------
    bounds:
        fp32 (layers, 2, n), lower ones first, where the rows are a multiple of n.
    flags:
        uint8 (rows,): gets the bit ``ft2.native.OUTSIDE_BOUNDS``; never reset here.
    """

    def __init__(self, bounds: Tensor, flags: Tensor) -> None:
        self.bounds = bounds
        self.flags = flags
        keep_address(bounds)
        keep_address(flags)

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        bounds = self.bounds
        if seats != list(range(len(bounds))):
            bounds = torch.stack([bounds[seat] for seat in seats])
        torch.ops.ft2.check_bounds.default(outputs, bounds, self.flags)


class ChecksumCheck:
    """Flags rows with an output whose columns do not add up to what they should.

    Parameters
    ----------
    modules:
        The linear layers, in the order of their seats.
    flags:
        uint8 (rows,): gets the bit ``ft2.native.WRONG_SUM``; never reset here.
    group:
        How many columns are summed at a time, where that divides a layer's columns: a single sum
        has all columns, and hides small errors in the rounding of many. 0 sums all.
    """

    def __init__(self, modules: list[nn.Linear], flags: Tensor, group: int = 0) -> None:
        self.flags = flags
        self._modules = modules
        self._group = group
        self._known: list[tuple[Any, ...]] = [() for _ in modules]
        self._sums: list[Tensor] = [flags.new_empty(0) for _ in modules]
        dtype = modules[0].weight.dtype
        if dtype not in _ROUNDOFFS:
            raise ValueError(f"checksums are for fp16, bf16 and fp32 layers, not {dtype}")
        self._roundoffs = _ROUNDOFFS[dtype]
        keep_address(flags)
        self.refresh()

    def refresh(self) -> None:
        """Sum the weights that are others than before: moved, loaded, exchanged, changed in place.

        What writes past autograd, to a weight's ``.data``, leaves no trace: make another check.
        """
        for index, module in enumerate(self._modules):
            identity = _identity(module)
            if identity != self._known[index]:
                self._known[index] = identity
                self._sums[index] = summed_weight(module, self._group)
                keep_address(self._sums[index])

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        sums = [self._sums[seat] for seat in seats]
        torch.ops.ft2.check_products.default(outputs, hidden, sums, self.flags, self._roundoffs)


class DetectionLane(Lane):
    """Keeps the outputs of linear layers, and has them checked at the end of each forward.

    What a model adds to an output in place, as Falcon does, is checked with it, and flagged.

    Raises
    ------
    RuntimeError
        If there are no native operations to check with.
    """

    def __init__(self, checks: list[Check]) -> None:
        status = load()
        if not status.cpu.active:
            raise RuntimeError(f"detection needs the native operations: {status.cpu.detail}")
        self._checks = checks
        self._is_keeping = False
        self._seats: list[int] = []
        self._hidden: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def begin(self) -> None:
        """Keep and check the outputs of the forward that begins, until its end."""
        self._is_keeping = True
        self.is_direct = hears_nothing()

    def end(self) -> None:
        self._is_keeping = False
        self.is_direct = False
        self._forget()

    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        if self._is_keeping:
            self._seats.append(seat)
            self._hidden.append(hidden)
            self._outputs.append(output)
        return output

    def traced(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        return self.eager(seat, hidden, output)

    def finish(self) -> None:
        if self._seats:
            for check in self._checks:
                check(self._seats, self._hidden, self._outputs)
            self._forget()

    def _forget(self) -> None:
        self._seats.clear()
        self._hidden.clear()
        self._outputs.clear()


@torch.no_grad()
def summed_weight(module: nn.Linear, group: int = 0) -> Tensor:
    """Return fp32 (groups, inputs + 1): the weight's and, last, the bias's sum over each group.

    Sums are taken in fp64 and rounded once, so that they add no error of their own.
    """
    columns = module.out_features
    groups = columns // group if group and columns % group == 0 else 1
    sums = module.weight.new_empty((groups, module.in_features + 1), dtype=torch.float32)
    rows = module.weight.view(groups, columns // groups, module.in_features)
    sums[:, :-1] = rows.sum(1, dtype=torch.float64)
    bias = module.bias
    sums[:, -1] = 0 if bias is None else bias.view(groups, -1).sum(1, dtype=torch.float64)
    return sums


def _identity(module: nn.Linear) -> tuple[Any, ...]:
    """What changes when a weight or bias does."""
    parts = (module.weight, module.bias)
    return tuple(
        # What was made in inference mode counts no versions.
        None
        if part is None
        else (id(part), part.data_ptr(), 0 if part.is_inference() else part._version)
        for part in parts
    )
