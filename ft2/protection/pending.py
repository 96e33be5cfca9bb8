"""Outputs that wait to be restricted by the operation that uses them first.

In eager mode a decoding step is bound by the number of launches, so one more for each layer shows.
Most critical layers' outputs go straight into a sum (the residual stream) or a product (a gated
MLP): there one native operation restricts and adds, in the launch that the sum takes anyway.
Whatever else is done to such an output first, its values are restricted before.
"""

from __future__ import annotations

from collections.abc import Callable
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

    Attributes
    ----------
    restrict:
        The native operation.
    waits:
        Whether the layer's outputs wait for their first use. They do until one of them was used
        by something that cannot restrict it on the way.
    """

    __slots__ = ("_add", "_multiply", "restrict", "waits")

    def __init__(self, operations: Operations) -> None:
        self.restrict = operations.restrict_
        self._add = operations.restrict_and_add
        self._multiply = operations.restrict_and_multiply
        self.waits = True

    def settle(self, output: Tensor, arguments: tuple[Any, ...]) -> None:
        """Restrict an output that something else than a sum or a product is about to use."""
        self.waits = False
        self.restrict(output, *arguments)

    def add(self, output: Tensor, other: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        """Restrict the output in place, and return its sum with `other`."""
        return self._combine(self._add, torch.add, output, other, arguments)

    def multiply(self, output: Tensor, other: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        """Restrict the output in place, and return its product with `other`."""
        return self._combine(self._multiply, torch.mul, output, other, arguments)

    def _combine(
        self,
        native: Callable[..., Tensor],
        plain: Callable[..., Tensor],
        output: Tensor,
        other: Tensor,
        arguments: tuple[Any, ...],
    ) -> Tensor:
        try:
            return native(output, other, *arguments)
        except RuntimeError:
            # Of other shapes, types or strides; then nothing was done yet.
            self.settle(output, arguments)
            return plain(output, other)


class Pending(Tensor):
    """A layer's output that nothing has used yet. Made by :meth:`wait` of one that is there."""

    _restrictor: Restrictor
    _arguments: tuple[Any, ...]

    @staticmethod
    def wait(output: Tensor, restrictor: Restrictor, arguments: tuple[Any, ...]) -> Tensor:
        """Let `output` itself wait for its first use; `arguments` go to the native operation."""
        pending: Any = output
        pending.__class__ = Pending
        pending._restrictor, pending._arguments = restrictor, arguments
        return output

    def __add__(self, other: Any) -> Any:
        return self._used(Restrictor.add, Tensor.__add__, other)

    def __radd__(self, other: Any) -> Any:
        return self._used(Restrictor.add, Tensor.__radd__, other)

    def __mul__(self, other: Any) -> Any:
        return self._used(Restrictor.multiply, Tensor.__mul__, other)

    def __rmul__(self, other: Any) -> Any:
        return self._used(Restrictor.multiply, Tensor.__rmul__, other)

    def _used(self, native: Callable[..., Tensor], plain: Callable[..., Any], other: Any) -> Any:
        if type(other) is Pending:
            other._settle()
        if type(other) is Tensor:
            restrictor, arguments = self._restrictor, self._arguments
            self._become_plain()
            return native(restrictor, self, other, arguments)
        self._settle()
        return plain(self, other)

    def _settle(self) -> None:
        restrictor, arguments = self._restrictor, self._arguments
        self._become_plain()
        restrictor.settle(self, arguments)

    def _become_plain(self) -> None:
        del self._restrictor, self._arguments
        self.__class__ = Tensor  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Without training it returns what it is given.
        if func is functional.dropout and not kwargs.get("training", True):
            return args[0]
        for value in (*args, *kwargs.values()):
            _settle_all(value)
        return func(*args, **kwargs)


def _settle_all(value: Any) -> None:
    if type(value) is Pending:
        value._settle()
    elif isinstance(value, (list, tuple)):
        for each in value:
            _settle_all(each)
    elif isinstance(value, dict):
        for each in value.values():
            _settle_all(each)
