"""Detect wrong outputs of projections without changing them, in one launch for all of a step.

The outputs are kept, and checked at the forward's end: against bounds, against their checksums, or
both. Reading the flags waits for the device, so it is left to whoever needs them.

The sums of the weights are computed once for each weight. They are kept beside the weight, not as
one more row of it: so the weight stays the model's own tensor, and the row's product costs one pass
over the inputs in the launch that checks. Where the native operations are not there, plain torch
checks, in several launches for each output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from ft2.forward import Lane, Slots, hears_nothing
from ft2.native import OUTSIDE_BOUNDS, WRONG_SUM, load
from ft2.native.direct import Checked, DirectChecks, hears_no_operations
from ft2.native.exchange import exchange
from ft2.protection.checksum import NARROW, differing_sums, roundoffs_of, summed_weight, sums_of
from ft2.protection.kernels import native_operations
from ft2.protection.resident import keep_address

__all__ = [
    "BoundsCheck",
    "Check",
    "ChecksumCheck",
    "DetectionLane",
    "Output",
    "Place",
    "summed_weight",
]

# How many numbers are kept until the forward's end: a long prompt's would not fit.
_MOST_KEPT = 2**25
# How many sums of weights compiled code has in a tensor of their own: 64 MB.
_MOST_SUMS = 2**24

# A layer's seat, and its columns from and to; None: to the last.
Place = tuple[int, int, int | None]


@dataclass(frozen=True, eq=False)
class Output:
    """What a layer computed.

    Attributes
    ----------
    seat:
        Which layer.
    hidden, values:
        What it was given and what it put out: (rows, tokens, columns), or flattened.
    """

    seat: int
    hidden: Tensor
    values: Tensor


class Check(Protocol):
    """What is made of the outputs of a forward."""

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        """Set the flags of rows with an output that is wrong.

        Parameters
        ----------
        seats:
            The layers that ran; one that ran twice is there twice.
        hidden, outputs:
            What each was given, and what it computed: (rows, tokens, columns).
        """


class BoundsCheck:
    """Flags rows with a value outside of its layer's bounds; NaN is outside.

    Parameters
    ----------
    bounds:
        fp32 (places, 2, n), lower ones first, where the rows are a multiple of n.
    flags:
        uint8 (rows,), or (rows · tokens,): gets the bit ``ft2.native.OUTSIDE_BOUNDS``; never reset
        here.
    places:
        Of each place its layer's seat, and its columns from and to (None: to the last); None: each
        seat is a place, with all of its columns.
    """

    def __init__(
        self, bounds: Tensor, flags: Tensor, places: Sequence[Place] | None = None
    ) -> None:
        self.bounds = bounds
        self.flags = flags
        self._is_native = load().serves(flags.device)
        # Looked up here: compiled code would check each name on the way.
        self._operation: Any = torch.ops.ft2.check_bounds.default if self._is_native else None
        each_seat: list[Place] = [(seat, 0, None) for seat in range(len(bounds))]
        # Compiled code guards on all that it reads: where seats are places, on this alone.
        self._are_seats = places is None or list(places) == each_seat
        self._places: dict[int, list[tuple[int, slice]]] = {}
        for at, (seat, start, stop) in enumerate(each_seat if places is None else places):
            self._places.setdefault(seat, []).append((at, slice(start, stop)))
        self._count = len(bounds)
        self._direct: DirectChecks | None = None
        self._planned: Tensor | None = None
        keep_address(bounds)
        keep_address(flags)

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        bounds, parts = self.bounds, outputs
        if not (self._are_seats and seats == list(range(self._count))):
            order, parts = [], []
            for seat, output in zip(seats, outputs, strict=True):
                for at, columns in self._places.get(seat, ()):
                    order.append(at)
                    whole = columns.start == 0 and columns.stop in (None, output.shape[-1])
                    parts.append(output if whole else output[..., columns])
            if not parts:
                return
            if order != list(range(len(bounds))):
                bounds = torch.stack([bounds[at] for at in order])
        elif self._is_native and not is_compiling() and self._checks_directly(outputs):
            return
        if self._is_native:
            self._operation(_adjacent(parts), bounds, self.flags)
            return
        for part, both in zip(parts, bounds, strict=True):
            _raise_flags(self.flags, _outside(part, both).any(1), OUTSIDE_BOUNDS)

    def _checks_directly(self, outputs: list[Tensor]) -> bool:
        if not hears_no_operations():
            return False
        if self._planned is not self.flags:
            self._planned, self._direct = self.flags, None
            if _is_served(outputs[0], self.flags):
                layers = [
                    Checked(bounds, output.shape[-1], 0, len(bounds[0]))
                    for bounds, output in zip(self.bounds, outputs, strict=True)
                ]
                self._direct = DirectChecks(layers, self.flags, outputs[0].dtype)
        return self._direct is not None and self._direct.check_bounds(outputs)

    def spots(self, output: Output, vectors: Tensor) -> list[tuple[int, int, int]]:
        """Return vector and column of each value that is outside, of some vectors, int64 (n,)."""
        found = []
        values = output.values.reshape(-1, output.values.shape[-1])
        for at, columns in self._places.get(output.seat, ()):
            bounds = self.bounds[at]
            bounds = bounds[:, vectors // (len(values) // bounds.shape[1])]
            wrong = _outside(values[vectors, columns], bounds).nonzero().tolist()
            found += [(int(vectors[n]), columns.start + column, 0) for n, column in wrong]
        return found


class ChecksumCheck:
    """Flags rows with an output whose columns do not add up to what they should.

    Parameters
    ----------
    modules:
        The linear layers, in the order of their seats.
    flags:
        uint8 (rows,), or (rows · tokens,): gets the bit ``ft2.native.WRONG_SUM``; never reset here.
    group:
        How many columns are summed at a time, where that divides a layer's columns: a single sum
        has all columns, and hides small errors in the rounding of many. 0 sums all.
    """

    def __init__(self, modules: Sequence[nn.Module], flags: Tensor, group: int = 0) -> None:
        self.flags = flags
        self._is_native = load().serves(flags.device)
        self._operation: Any = torch.ops.ft2.check_products.default if self._is_native else None
        self._modules = list(modules)
        self._group = group
        self._roundoffs = 0.0
        self._sums: list[Tensor] = []
        self._columns: list[int] = []
        self._narrow: frozenset[int] = frozenset()
        self._count = len(self._modules)
        self._all_sums: Tensor | None = None
        self._direct: DirectChecks | None = None
        self._planned: Tensor | None = None
        keep_address(flags)
        self.refresh()

    def refresh(self) -> None:
        """Sum the weights that are others than before: moved, loaded, exchanged, changed in place.

        What writes past autograd, to a weight's ``.data``, leaves no trace.
        """
        weights: list[Tensor] = [module.weight for module in self._modules]  # type: ignore[misc]
        roundoffs = roundoffs_of(weights[0])
        sums = [sums_of(module, self._group) for module in self._modules]
        if roundoffs != self._roundoffs or list(map(id, sums)) != list(map(id, self._sums)):
            self._planned = None
            self._all_sums = _one_tensor(sums)
        self._roundoffs, self._sums = roundoffs, sums
        self._columns = [
            weight.numel() // (each.shape[1] - 1)
            for weight, each in zip(weights, self._sums, strict=True)
        ]
        self._narrow = frozenset(
            seat
            for seat, (columns, each) in enumerate(zip(self._columns, self._sums, strict=True))
            if columns // len(each) < NARROW
        )

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        if (
            self._is_native
            and not is_compiling()
            and seats == list(range(self._count))
            and self._checks_directly(hidden, outputs)
        ):
            return
        by_torch: list[int] = []
        # Compiled code would guard on each seat that is not among none.
        if self._narrow or not self._is_native:
            by_torch = [
                at for at, seat in enumerate(seats) if not self._is_native or seat in self._narrow
            ]
        for at in by_torch:
            sums = self._sums[seats[at]]
            wrong = differing_sums(outputs[at], hidden[at], sums, self._roundoffs)
            _raise_flags(self.flags, wrong.any(1), WRONG_SUM)
        if by_torch:
            others = [at for at in range(len(seats)) if at not in by_torch]
            seats = [seats[at] for at in others]
            hidden = [hidden[at] for at in others]
            outputs = [outputs[at] for at in others]
        if seats:
            self._operation(
                _adjacent(outputs),
                _adjacent(hidden),
                self._sums_of(seats, hidden, outputs),
                self.flags,
                self._roundoffs,
            )

    def _sums_of(
        self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]
    ) -> list[Tensor]:
        if not is_compiling() or self._all_sums is None or seats != list(range(self._count)):
            return [self._sums[seat] for seat in seats]
        # Compiled code takes one tensor and cuts it: it would guard on each of many.
        found, start = [], 0
        for given, output in zip(hidden, outputs, strict=True):
            inputs, columns = given.shape[-1], output.shape[-1]
            groups = columns // self._group if self._group and columns % self._group == 0 else 1
            stop = start + groups * (inputs + 1)
            found.append(self._all_sums[start:stop].view(groups, inputs + 1))
            start = stop
        return found

    def _checks_directly(self, hidden: list[Tensor], outputs: list[Tensor]) -> bool:
        if self._narrow or not hears_no_operations():
            return False
        if self._planned is not self.flags:
            self._planned, self._direct = self.flags, None
            if _is_served(outputs[0], self.flags):
                layers = [
                    Checked(sums, columns, sums.shape[1] - 1, len(sums))
                    for sums, columns in zip(self._sums, self._columns, strict=True)
                ]
                dtype = outputs[0].dtype
                self._direct = DirectChecks(layers, self.flags, dtype, self._roundoffs)
        return self._direct is not None and self._direct.check_products(outputs, hidden)

    def spots(self, output: Output, vectors: Tensor) -> list[tuple[int, int, int]]:
        """Return where sums are wrong, of some vectors, int64 (n,).

        Returns
        -------
        list of tuple
            The vector, its group of columns, and a hash of the group's values: a sum does not tell
            which of them is wrong, but a value that stays leaves all of them as they were.
        """
        values, hidden = (
            each.reshape(-1, each.shape[-1])[vectors] for each in (output.values, output.hidden)
        )
        sums = self._sums[output.seat]
        wrong = differing_sums(values, hidden, sums, self._roundoffs)
        groups = values.detach().reshape(len(values), len(sums), -1)
        return [
            (int(vectors[n]), group, hash(bytes(groups[n, group].view(torch.uint8).tolist())))
            for n, group in wrong.nonzero().tolist()
        ]


class DetectionLane(Lane):
    """Keeps the outputs of linear layers, and has them checked at the end of each forward.

    Parameters
    ----------
    checks:
        What is made of them.
    at_once:
        Seats whose outputs the model changes in place afterwards, as Falcon adds to one: these are
        checked as soon as they are there.
    """

    def __init__(self, checks: Sequence[Check], at_once: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self._checks = list(checks)
        self._at_once = at_once
        self._is_keeping = False
        self._kept = 0
        # How many vectors a forward may have for all its outputs to be kept: as many as one had.
        self._fitting = 0
        self._vectors = 0
        self._fits = True
        self._seats: list[int] = []
        self._hidden: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._is_checked = False

    @property
    def outputs(self) -> list[Output]:
        """What was checked in the running forward, until it ends.

        Incomplete after a long prompt, and empty in compiled code, which keeps nothing.
        """
        if not self._is_checked:
            return []
        slots = self.slots
        if slots is not None:
            return list(map(Output, slots.seats, slots.hidden, slots.outputs))
        return list(map(Output, self._seats, self._hidden, self._outputs))

    def begin(self, checks: Sequence[Check] | None = None, vectors: int = 0) -> None:
        """Keep and check the outputs of the forward that begins, until its end.

        Parameters
        ----------
        checks:
            What is made of them, from this forward on; None: what was before.
        vectors:
            How many a layer puts out: rows times tokens. Of as many as were all kept before, no
            count is kept. 0: not known.
        """
        if checks is not None:
            self._checks = list(checks)
        self._begin(vectors, None)

    def repeating(self, vectors: int) -> Callable[[], None]:
        """Return what begins a forward like the last one, in place of :meth:`begin`.

        As long as it is held, the memory of one forward's inputs and outputs is.

        Parameters
        ----------
        vectors:
            As there.
        """
        return functools.partial(self._begin, vectors, Slots(self.count))

    def _begin(self, vectors: int, slots: Slots | None) -> None:
        self._forget()
        self._vectors, self._fits = vectors, True
        self._is_keeping = True
        # Compiled code does without ways past a module's call.
        if self.wardrobe.is_for_compiled:
            return
        self.is_direct = hears_nothing()
        if self.is_direct and 0 < vectors <= self._fitting and not self._at_once:
            self.slots = Slots(self.count) if slots is None else slots
            self.slots.next = 0

    def end(self) -> None:
        self._is_keeping = False
        self.is_direct = False
        self._forget()

    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        if not self._is_keeping:
            return output
        # Compiled code would guard on each seat that is not in it.
        if self._at_once and seat in self._at_once:
            for check in self._checks:
                check([seat], [hidden], [output])
            return output
        self._seats.append(seat)
        self._hidden.append(hidden)
        self._outputs.append(output)
        self._kept += output.numel()
        if self._kept > _MOST_KEPT:
            self._fits = False
            self._check(self._seats, self._hidden, self._outputs)
            self._clear()
        return output

    def traced(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        return self.eager(seat, hidden, output)

    def finish(self) -> None:
        slots = self.slots
        if slots is not None and slots.next == self.count and not self._seats:
            self._check(slots.seats, slots.hidden, slots.outputs)
            self._is_checked = True
            return
        if slots is not None:
            # Others were not called directly, or not in turn.
            self._seats += range(slots.next)
            self._hidden += slots.hidden[: slots.next]
            self._outputs += slots.outputs[: slots.next]
            self.slots = None
        if self._seats:
            self._check(self._seats, self._hidden, self._outputs)
        if is_compiling():
            self._clear()
            return
        if self._kept and self._fits:
            self._fitting = max(self._fitting, self._vectors)
        self._is_checked = True

    def _check(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        for check in self._checks:
            check(seats, hidden, outputs)

    def _forget(self) -> None:
        self.slots = None
        self._is_checked = False
        self._clear()

    def _clear(self) -> None:
        self._seats.clear()
        self._hidden.clear()
        self._outputs.clear()
        self._kept = 0


def _one_tensor(sums: list[Tensor]) -> Tensor | None:
    """Return all numbers of these in one tensor, unless they are too many to have twice."""
    devices = {each.device for each in sums}
    if sum(each.numel() for each in sums) > _MOST_SUMS or len(devices) > 1:
        return None
    with torch.inference_mode(False), torch.no_grad():
        together = torch.cat([each.flatten() for each in sums])
    keep_address(together)
    return together


def _is_served(output: Tensor, flags: Tensor) -> bool:
    is_there = output.device == flags.device and exchange() is not None
    return is_there and native_operations(output.device, output.dtype) is not None


def _adjacent(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors, or copies of those that are no rows of adjacent columns."""
    return [
        each if each.is_contiguous() or _are_rows(each) else each.contiguous() for each in tensors
    ]


def _are_rows(tensor: Tensor) -> bool:
    """Whether rows of adjacent columns lie at even distances."""
    if tensor.stride(-1) != 1:
        return False
    sizes, strides = tensor.shape[:-1], tensor.stride()[:-1]
    return all(
        strides[at] == strides[at + 1] * sizes[at + 1] or sizes[at] == 1
        for at in range(len(sizes) - 1)
    )


def _outside(part: Tensor, bounds: Tensor) -> Tensor:
    """Return bool (vectors, columns): which values are not within bounds, (2, n)."""
    values = part.reshape(-1, part.shape[-1])
    low, high = bounds.repeat_interleave(len(values) // bounds.shape[1], 1)[..., None]
    return ~((values >= low) & (values <= high))


def _raise_flags(flags: Tensor, wrong: Tensor, bit: int) -> None:
    """Set a bit of the flags of those that have the vectors, bool (vectors,), that are wrong."""
    flags |= wrong.view(len(flags), -1).any(1).to(torch.uint8) * bit
