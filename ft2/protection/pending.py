"""Outputs that wait to be restricted by the operation that uses them first.

In eager mode a decoding step is bound by the number of launches, so one more for each layer shows.
Most critical layers' outputs go straight into a sum (the residual stream) or a product (a gated
MLP): there one native operation restricts and adds, in the launch that the sum takes anyway.
Whatever else torch does to such an output first, its values are restricted before. Code that takes
tensors past torch's own functions (an extension bound by pybind, dlpack) is not seen; but an output
that nothing had restricted at the forward's end is, and then the model's outputs wait no more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ft2.native import Operations

__all__ = ["Pending", "Restrictor"]


class Restrictor:
    """Restricts one layer's outputs natively, as late as that layer's model lets it.

    Parameters
    ----------
    operations:
        The native operations.
    bounds:
        (2, requests), lower ones first, contiguous.
    corrected:
        int64 (requests,); updated in place.
    live:
        bool (requests, 1), whose corrections are counted; None when all are.

    Attributes
    ----------
    waits:
        Whether the layer's outputs wait for their first use. They do until one of them was used
        by something that cannot restrict it on the way.
    waiting:
        How many outputs wait now.
    """

    __slots__ = ("_add", "_multiply", "_restrict", "_with", "waiting", "waits")

    def __init__(
        self, operations: Operations, bounds: Tensor, corrected: Tensor, live: Tensor | None
    ) -> None:
        self._restrict = operations.restrict_
        self._add = operations.restrict_and_add
        self._multiply = operations.restrict_and_multiply
        self._with = (bounds, corrected, live)
        self.waits = True
        self.waiting = 0

    def restrict(self, output: Tensor) -> None:
        """Restrict the output in place."""
        self._restrict(output, *self._with)

    def add(self, output: Tensor, other: Tensor) -> Tensor:
        """Restrict the output in place, and return its sum with `other`."""
        try:
            return self._add(output, other, *self._with)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # Of other shapes, types or strides; then nothing was done yet.
            self.waits = False
            self._restrict(output, *self._with)
            return torch.add(output, other)

    def multiply(self, output: Tensor, other: Tensor) -> Tensor:
        """Restrict the output in place, and return its product with `other`."""
        try:
            return self._multiply(output, other, *self._with)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self.waits = False
            self._restrict(output, *self._with)
            return torch.mul(output, other)


class Pending(Tensor):
    """A layer's output that nothing has used yet. Made by :meth:`wait` of one that is there."""

    _restrictor: Restrictor

    @staticmethod
    def wait(output: Any, restrictor: Restrictor) -> Tensor:
        """Let `output` itself wait for its first use."""
        output.__class__ = Pending
        output._restrictor = restrictor
        restrictor.waiting += 1
        return output

    def __add__(self, other: Any) -> Any:
        return self._settled() + other if type(other) is not Tensor else self._sum(other)

    def __radd__(self, other: Any) -> Any:
        return other + self._settled() if type(other) is not Tensor else self._sum(other)

    def __mul__(self, other: Any) -> Any:
        return self._settled() * other if type(other) is not Tensor else self._product(other)

    def __rmul__(self, other: Any) -> Any:
        return other * self._settled() if type(other) is not Tensor else self._product(other)

    def _sum(self, other: Tensor) -> Tensor:
        return self._become_plain().add(self, other)

    def _product(self, other: Tensor) -> Tensor:
        return self._become_plain().multiply(self, other)

    def _settled(self) -> Tensor:
        """Restrict the values, which something else than a sum or a product is about to use."""
        restrictor = self._become_plain()
        restrictor.waits = False
        restrictor.restrict(self)
        return self

    def _become_plain(self) -> Restrictor:
        restrictor = self._restrictor
        del self._restrictor
        self.__class__ = Tensor  # type: ignore[assignment]
        restrictor.waiting -= 1
        return restrictor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Without training it returns what it is given.
        if func is functional.dropout and not kwargs.get("training", True):
            return args[0]
        for value in (*args, *kwargs.values()):
            _settle(value)
        return func(*args, **kwargs)


def _settle(value: Any) -> None:
    if type(value) is Pending:
        value._settled()
    elif isinstance(value, (list, tuple)):
        for each in value:
            _settle(each)
    elif isinstance(value, dict):
        for each in value.values():
            _settle(each)
