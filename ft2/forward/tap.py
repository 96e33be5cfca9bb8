"""Read or change what a module puts out, and what it multiplies with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as _module

from ft2.forward.disguise import Disguise
from ft2.forward.trail import Product, Trail, Vectors

__all__ = ["Order", "Tap", "tap", "tap_product"]

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


@dataclass(frozen=True, eq=False)
class _OnProduct:
    order: Order
    transform: VectorTransform
    product: Product


class _TappedModule:
    """The taps of one module, and the class that runs them."""

    def __init__(self, module: nn.Module) -> None:
        self.taps: list[_OnOutput | _OnProduct] = []
        self.transforms: tuple[Transform, ...] = ()
        self.products: tuple[Product, ...] = ()
        call = type(module).__call__
        is_plain = type(module) is nn.Linear

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
            elif is_plain and len(args) == 1 and not kwargs and _runs_plainly(module.__dict__):
                # What a linear layer's call comes to, without the ways of a module's call.
                parameters = module.__dict__["_parameters"]
                output = functional.linear(args[0], parameters["weight"], parameters["bias"])
            else:
                output = call(module, *args, **kwargs)
            for transform in self.transforms:
                output = transform(output)
            return output

        self.disguise = Disguise(module, {"__call__": call_and_tap})

    def add(self, entry: _OnOutput | _OnProduct) -> None:
        self.taps.append(entry)
        self._sort()

    def remove(self, entry: _OnOutput | _OnProduct) -> None:
        self.taps.remove(entry)
        self._sort()

    def _sort(self) -> None:
        self.taps.sort(key=lambda entry: entry.order)
        self.transforms = tuple(
            entry.transform for entry in self.taps if isinstance(entry, _OnOutput)
        )
        by_parameter: dict[tuple[int, str], list[_OnProduct]] = {}
        for entry in self.taps:
            if isinstance(entry, _OnProduct):
                parameter = (id(entry.product.owner), entry.product.name)
                by_parameter.setdefault(parameter, []).append(entry)
        self.products = tuple(_in_turn(entries) for entries in by_parameter.values())


def _runs_plainly(own: dict[str, Any]) -> bool:
    """Whether calling the linear layer whose attributes these are is its product and no more."""
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_compiled_call_impl" in own
        or "weight" not in own["_parameters"]
        or torch.compiler.is_compiling()
        or _module._has_any_global_hook()
        or torch._C._get_tracing_state()
    )


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

    def __init__(self, module: nn.Module, entry: _OnOutput | _OnProduct) -> None:
        tapped = _TAPPED.get(module)
        stale = tapped is not None and type(module) not in (
            tapped.disguise.original,
            tapped.disguise.worn,
        )
        if tapped is None or stale:
            tapped = _TAPPED[module] = _TappedModule(module)
        if not tapped.taps:
            tapped.disguise.put_on(module)
        tapped.add(entry)
        self._module = module
        self._tapped = tapped
        self._entry = entry
        self._attached = True

    def remove(self) -> None:
        """Detach the transform; the module's class is its own again once no tap is left."""
        if not self._attached:
            return
        self._attached = False
        self._tapped.remove(self._entry)
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
    return Tap(module, _OnOutput(order, transform))


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
