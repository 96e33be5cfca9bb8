"""Read or change what a module puts out."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ft2.forward.disguise import Disguise

__all__ = ["Order", "Tap", "tap"]

Transform = Callable[[Tensor], Tensor]


class Order(IntEnum):
    """Where a tap stands among the taps of one module: a fault strikes before a protection."""

    OBSERVE = 0
    INJECT = 1
    PROTECT = 2


class _TappedModule:
    """The taps of one module, and the class that runs them."""

    def __init__(self, module: nn.Module) -> None:
        self.taps: list[tuple[Order, Transform]] = []
        self.transforms: tuple[Transform, ...] = ()
        call = type(module).__call__

        def call_and_tap(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = call(module, *args, **kwargs)
            for transform in self.transforms:
                output = transform(output)
            return output

        self.disguise = Disguise(module, {"__call__": call_and_tap})

    def add(self, order: Order, transform: Transform) -> None:
        self.taps.append((order, transform))
        self._sort()

    def remove(self, order: Order, transform: Transform) -> None:
        self.taps.remove((order, transform))
        self._sort()

    def _sort(self) -> None:
        self.taps.sort(key=lambda entry: entry[0])
        self.transforms = tuple(transform for _, transform in self.taps)


# A class is made once a module: making one takes longer than a small model's layer.
_TAPPED: WeakKeyDictionary[nn.Module, _TappedModule] = WeakKeyDictionary()


class Tap:
    """One transform attached to one module, until removed."""

    def __init__(
        self, module: nn.Module, tapped: _TappedModule, order: Order, transform: Transform
    ) -> None:
        self._module = module
        self._tapped = tapped
        self._order = order
        self._transform = transform
        self._attached = True

    def remove(self) -> None:
        """Detach the transform; the module's class is its own again once no tap is left."""
        if not self._attached:
            return
        self._attached = False
        self._tapped.remove(self._order, self._transform)
        if not self._tapped.taps:
            self._tapped.disguise.take_off(self._module)


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
    tapped = _TAPPED.get(module)
    stale = tapped is not None and type(module) not in (
        tapped.disguise.original,
        tapped.disguise.worn,
    )
    if tapped is None or stale:
        tapped = _TAPPED[module] = _TappedModule(module)
    if not tapped.taps:
        tapped.disguise.put_on(module)
    tapped.add(order, transform)
    return Tap(module, tapped, order, transform)
