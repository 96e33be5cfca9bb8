"""Read or change what a module puts out, and what it multiplies with parameters of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ft2.forward.disguise import Disguise
from ft2.forward.lane import Lane, Seat, seats_of
from ft2.forward.trail import Product, Trail, Vectors

__all__ = ["Order", "Tap", "tap", "tap_in_lane", "tap_product"]

Transform = Callable[[Tensor], Tensor]
VectorTransform = Callable[[Vectors], Tensor]


class Order(IntEnum):
    """Where a tap stands among the taps of one module: a fault strikes before a protection."""

    OBSERVE = 0
    INJECT = 1
    PROTECT = 2


@dataclass(frozen=True, eq=False)
class _OnOutput:
    order: Order
    transform: Transform

    def apply(self, hidden: Tensor, output: Tensor) -> Tensor:
        del hidden
        return self.transform(output)


@dataclass(frozen=True, eq=False)
class _OnLane:
    order: Order
    lane: Lane
    seat: Seat
    running: list[Lane]

    def apply(self, hidden: Tensor, output: Tensor) -> Tensor:
        number = self.seat.number
        assert number is not None
        if torch.compiler.is_compiling():
            return self.lane.traced(number, hidden, output)
        return self.lane.eager(number, hidden, output)


@dataclass(frozen=True, eq=False)
class _OnProduct:
    order: Order
    transform: VectorTransform
    product: Product


_Entry = _OnOutput | _OnLane | _OnProduct


class _TappedModule:
    """The taps of one module, and the class that runs them."""

    def __init__(self, module: nn.Module) -> None:
        self.taps: list[_Entry] = []
        self.outputs: tuple[_OnOutput | _OnLane, ...] = ()
        self.products: tuple[Product, ...] = ()
        call = type(module).__call__

        # Numbers of tokens are bookkeeping that no compiled graph should hold.
        @torch.compiler.disable
        def call_and_follow(module: nn.Module, args: Any, kwargs: Any) -> Any:
            trail = Trail(list(self.products), args, kwargs)
            with trail:
                output = call(module, *args, **kwargs)
            trail.finish()
            return output

        def call_and_tap(module: Any, *args: Any, **kwargs: Any) -> Any:
            if self.products:
                output = call_and_follow(module, args, kwargs)
            else:
                output = call(module, *args, **kwargs)
            if not self.outputs:
                return output
            hidden = args[0] if args else next(iter(kwargs.values()))
            # What a hook returns may be the user's own, and a tap may change what it is given.
            if module._forward_hooks and isinstance(output, Tensor):
                output = output.clone()
            for entry in self.outputs:
                output = entry.apply(hidden, output)
            return output

        self._original = type(module)
        self._call_and_tap = call_and_tap
        self._worn: Disguise | None = None

    def add(self, entry: _Entry, module: nn.Module) -> None:
        self.taps.append(entry)
        self._dress(module)

    def remove(self, entry: _Entry, module: nn.Module) -> None:
        self.taps.remove(entry)
        self._dress(module)

    def wear_for_eager(self) -> None:
        """Let the module wear what was put on it here, if compiled code runs it as another."""
        for each in self.taps:
            if isinstance(each, _OnLane):
                each.seat.wardrobe.wear(False)

    def knows(self, module: nn.Module) -> bool:
        """Whether the module's class is the one it had, or the one that it was given here."""
        return type(module) is (self._original if self._worn is None else self._worn.worn)

    @functools.cached_property
    def _general(self) -> Disguise:
        # Making a class takes long, and a module in a lane alone wears that of its seat.
        return Disguise(self._original, {"__call__": self._call_and_tap})

    def _dress(self, module: nn.Module) -> None:
        self.taps.sort(key=lambda entry: entry.order)
        self.outputs = tuple(
            each
            for each in self.taps
            if not isinstance(each, _OnProduct)
            and not (isinstance(each, _OnLane) and each.seat.number is None)
        )
        by_parameter: dict[tuple[int, str], list[_OnProduct]] = {}
        for entry in self.taps:
            if isinstance(entry, _OnProduct):
                parameter = (id(entry.product.owner), entry.product.name)
                by_parameter.setdefault(parameter, []).append(entry)
        self.products = tuple(_in_turn(entries) for entries in by_parameter.values())
        if self._worn is not None:
            self._worn.take_off(module)
        only = self.taps[0] if len(self.taps) == 1 else None
        if not self.taps:
            self._worn = None
            return
        if isinstance(only, _OnLane):
            only.seat.take(only.lane)
            self._worn = only.seat.disguise
        else:
            self._worn = self._general
        self._worn.put_on(module)


def _in_turn(entries: list[_OnProduct]) -> Product:
    def transform(vectors: Vectors) -> Tensor:
        for entry in entries:
            vectors = replace(vectors, values=entry.transform(vectors))
        return vectors.values

    return replace(entries[0].product, transform=transform)


# A class is made once a module: making one takes longer than a small model's layer.
_TAPPED: WeakKeyDictionary[nn.Module, _TappedModule] = WeakKeyDictionary()


class Tap:
    """One transform attached to one module, until removed."""

    def __init__(self, module: nn.Module, entry: _Entry) -> None:
        tapped = _TAPPED.get(module)
        if tapped is not None:
            tapped.wear_for_eager()
        if tapped is None or not tapped.knows(module):
            tapped = _TAPPED[module] = _TappedModule(module)
        tapped.add(entry, module)
        self._module = module
        self._tapped = tapped
        self._entry = entry
        self._attached = True

    def remove(self) -> None:
        """Detach the transform; the module's class is its own again once no tap is left."""
        if not self._attached:
            return
        self._attached = False
        self._tapped.wear_for_eager()
        self._tapped.remove(self._entry, self._module)
        if isinstance(self._entry, _OnLane):
            self._entry.seat.leave(self._entry.lane)
            if self._entry.lane in self._entry.running:
                self._entry.running.remove(self._entry.lane)


def tap(module: nn.Module, order: Order, transform: Transform) -> Tap:
    """Let `transform` replace what `module` puts out, until the returned tap is removed.

    Parameters
    ----------
    module:
        Any module whose output is one tensor.
    order:
        Taps of one module run in this order, whichever was attached first.
    transform:
        Takes the output and returns the tensor that goes on in its place.
    """
    return Tap(module, _OnOutput(order, transform))


def tap_in_lane(
    model: nn.Module,
    names: Iterable[str],
    lane: Lane,
    running: list[Lane],
    spared: Iterable[str] = (),
) -> list[Tap]:
    """Let `lane` have the outputs of modules, where a protection stands, until taps are removed.

    Parameters
    ----------
    model:
        The model.
    names:
        The modules' names; the lane's numbers for them are their places here.
    lane:
        What becomes of the outputs.
    running:
        The lanes that the model's clock tells of the end of a forward; `lane` joins them.
    spared:
        Names of modules whose outputs go on as they are (:func:`ft2.forward.sparable`): they are
        spared the ways of a module's call, which pays for what the others add.
    """
    seats = seats_of(model, names, spared)
    lane.wardrobe = seats[0].wardrobe
    lane.count = sum(seat.number is not None for seat in seats)
    lane.wardrobe.mend()
    taps = [
        Tap(module, _OnLane(Order.PROTECT, lane, seat, running))
        for seat in seats
        if (module := seat.module()) is not None
    ]
    running.append(lane)
    return taps


def tap_product(
    module: nn.Module,
    owner: nn.Module,
    parameter: str,
    width: int,
    matrices: int,
    order: Order,
    transform: VectorTransform,
) -> Tap:
    """Let `transform` replace the products with a parameter that `module` computes inside.

    Parameters
    ----------
    module:
        A module whose first tensor holds one vector for each token of the batch.
    owner, parameter:
        The module that holds the parameter, and the parameter's name there.
    width:
        Columns of the product.
    matrices:
        How many matrices the parameter holds (an expert's each); 0 for a single one.
    order:
        As in :func:`tap`.
    transform:
        Takes the :class:`Vectors` of one product and returns their values, or others of the same
        shape and dtype in their place.
    """
    product = Product(owner, parameter, width, matrices, transform)
    return Tap(module, _OnProduct(order, transform, product))
