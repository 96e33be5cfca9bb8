"""Follow the tokens of a batch through one module, to the products with its raw parameters.

Experts pack the tokens that were routed to them, routers and mixers multiply with parameters of
their own: nothing there is the output of a module with one vector for each token in order. While
the module runs, each tensor of its forward is followed together with the numbers of the tokens
that it holds, so that the vectors of a product can be told apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ft2.forward.tokens import UNKNOWN, leaves_gaps, letters_of_product, moved, tensors_in

__all__ = ["Product", "Trail", "Vectors"]

# Experts that were passed over by so many tokens are computed in a way that is not seen.
_TOKENS_IN_VAIN = 64


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of one product.

    Attributes
    ----------
    values:
        (vectors, columns), any floating-point dtype.
    tokens:
        int64 (vectors,): which token each belongs to, counted through the batch that the module
        was given, row after row.
    experts:
        int64 (vectors,): which of the parameter's matrices made each; None if it holds one.
    count:
        How many tokens the module was given.
    inputs:
        (vectors, inputs): what the matrices were multiplied with; None where that cannot be told.
    bias:
        (columns,), what was added to every product, or None.
    by_column:
        Whether a matrix of the parameter has its columns, rather than its rows, for the vectors'.
    """

    values: Tensor
    tokens: Tensor
    experts: Tensor | None
    count: int
    inputs: Tensor | None = None
    bias: Tensor | None = None
    by_column: bool = False


Transform = Callable[[Vectors], Tensor]


@dataclass(eq=False)
class Product:
    """A parameter whose products are to be found.

    Attributes
    ----------
    owner, name:
        The module that holds the parameter, and its name there: the tensor itself may be exchanged.
    width:
        Columns of its product.
    matrices:
        How many matrices it holds; 0 for one.
    transform:
        Takes the vectors and returns their values, or others in their place.
    in_vain:
        How many tokens the module was given without any product, or None once there was one.
    """

    owner: nn.Module
    name: str
    width: int
    matrices: int
    transform: Transform
    in_vain: int | None = 0

    @property
    def parameter(self) -> Tensor:
        """The parameter as it is now."""
        parameter: Tensor = getattr(self.owner, self.name)
        return parameter

    def __str__(self) -> str:
        return f"{type(self.owner).__name__}.{self.name}, of shape {tuple(self.parameter.shape)}"


_MATMULS = frozenset(
    [
        "linear",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "einsum",
        "grouped_mm",
        "_grouped_mm",
        "grouped_mm_fallback",
    ]
)
_GROUPED = frozenset(["grouped_mm", "_grouped_mm", "grouped_mm_fallback"])


@dataclass(frozen=True)
class _Weight:
    """Memory that holds a parameter, or what was copied from it.

    Attributes
    ----------
    start, stop:
        Its place in its storage, in bytes.
    chosen:
        Which of the parameter's matrices lie there, one after the other.
    """

    product: Product
    start: int
    stop: int
    chosen: Tensor | None

    def held(self, used: Tensor) -> Tensor | None:
        """Return which matrices `used`, a tensor in this memory, consists of."""
        if self.chosen is None:
            return None
        size = self.product.parameter.numel() // self.product.matrices
        first = (_extent(used)[0] - self.start) // (size * used.element_size())
        return self.chosen[first : first + max(used.numel() // size, 1)]


class Trail(TorchFunctionMode):
    """Follows one run of one module.

    Parameters
    ----------
    products:
        The parameters whose products are to be found.
    args, kwargs:
        What the module was given.
    """

    def __init__(self, products: list[Product], args: Any, kwargs: Any) -> None:
        super().__init__()
        given = _first_numbers(args, kwargs)
        if given is None:
            raise RuntimeError(f"ft2 finds no tokens in what was given to compute {products[0]}")
        lead = given.shape[:-1] if given.dim() == 2 else given.shape[:2]
        self._products = products
        self._count = lead.numel()
        self._tokens: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._weights: dict[int, list[_Weight]] = {}
        for each in products:
            parameter = each.parameter
            chosen = torch.arange(each.matrices, device=parameter.device) if each.matrices else None
            self._remember(parameter, each, chosen)
        self._met: set[int] = set()
        self._kept: list[Tensor] = []
        self._has_gaps = False
        numbers = torch.arange(self._count, device=given.device).reshape(lead)
        for tensor in tensors_in((args, kwargs)):
            if tensor.is_floating_point() and tensor.shape[: len(lead)] == lead:
                shape = (*lead, *[1] * (tensor.dim() - len(lead)))
                on_device = numbers.to(tensor.device)
                self._note(tensor, on_device.reshape(shape).expand(tensor.shape))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__
        tensors = list(tensors_in((args, kwargs)))
        used = next((each for each in tensors if self._weight(each) is not None), None)
        is_product = used is not None and name in _MATMULS and isinstance(out, Tensor)
        if any(self._numbers(each) is not None for each in tensors):
            self._has_gaps |= leaves_gaps(name)
            for tensor, numbers in moved(name, func, args, kwargs, out, self._numbers):
                self._note(tensor, numbers)
        elif used is not None and not is_product:
            self._derive(name, args, used, out)
        if used is not None and is_product:
            return self._multiplied(name, args, tensors, used, kwargs, out)
        return out

    def finish(self) -> None:
        """Note that the module has run.

        Raises
        ------
        RuntimeError
            If a product that it should have computed was not seen.
        """
        for product in self._products:
            if id(product) in self._met:
                product.in_vain = None
            elif product.in_vain is not None and self._count:
                product.in_vain += self._count
                # No token need be routed to experts.
                if not product.matrices or product.in_vain >= _TOKENS_IN_VAIN:
                    raise RuntimeError(
                        f"ft2 saw no product with {product}, although its module ran: the weight "
                        "is used from a copy, or by a kernel that torch does not announce, so "
                        "faults and protection would not reach it"
                    )

    def _remember(self, tensor: Tensor, product: Product, chosen: Tensor | None) -> None:
        start, stop = _extent(tensor)
        weight = _Weight(product, start, stop, chosen)
        self._weights.setdefault(_address(tensor), []).append(weight)

    def _weight(self, tensor: Tensor) -> _Weight | None:
        known = self._weights.get(_address(tensor))
        if known is None or not tensor.numel():
            return None
        start, stop = _extent(tensor)
        return next((each for each in known if each.start <= start and stop <= each.stop), None)

    def _note(self, tensor: Tensor, tokens: Tensor) -> None:
        self._tokens[id(tensor)] = (weakref.ref(tensor), tokens)

    def _numbers(self, tensor: Tensor) -> Tensor | None:
        reference, tokens = self._tokens.get(id(tensor), (None, None))
        return tokens if reference is not None and reference() is tensor else None

    def _derive(self, name: str, args: tuple[Any, ...], used: Tensor, out: Any) -> None:
        """Know weights again that were looked up, cast or copied."""
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() < 2:
            return
        weight = self._weight(used)
        if weight is None or self._weight(out) is not None:
            return
        chosen = weight.held(used)
        if name in ("__getitem__", "index_select"):
            index = args[-1]
            if not isinstance(index, Tensor) or index.is_floating_point():
                return
            chosen = None if chosen is None else chosen[index.reshape(-1)]
        # While it is known by its address, the memory must not be given to another tensor.
        self._kept.append(out)
        self._remember(out, weight.product, chosen)

    def _multiplied(
        self,
        name: str,
        args: Any,
        tensors: list[Tensor],
        used: Tensor,
        kwargs: Any,
        out: Tensor,
    ) -> Tensor:
        weight = self._weight(used)
        assert weight is not None
        product = weight.product
        self._met.add(id(product))
        if not out.numel():
            return out
        known = self._numbers(out)
        if known is None:
            raise RuntimeError(
                f"ft2 lost sight of the tokens on their way to a product with {product}"
            )
        numbers, column = known, -1
        if name == "einsum":
            found = letters_of_product(args, lambda each: self._weight(each) is not None)
            column = column if found is None else found
        elif name not in _GROUPED and name != "linear" and self._weight(tensors[-2]) is not None:
            # The weight is the left one of the two factors; a bias comes before both.
            column = -2
        whole = out
        if out.shape[column] != product.width:
            whole, numbers = out.flatten(-2), numbers.flatten(-2)
            if whole.shape[-1] != product.width:
                raise RuntimeError(
                    f"ft2 expected {product.width} columns in a product with {product}, and found "
                    f"an output of shape {tuple(out.shape)}"
                )
            column = -1
        by_vector = whole.movedim(column, -1)
        tokens = numbers.select(column, 0).reshape(-1)
        if self._has_gaps and bool((tokens == UNKNOWN).any()):
            raise RuntimeError(f"ft2 cannot tell whose all vectors of a product with {product} are")
        values = by_vector.reshape(-1, product.width)
        experts = None
        if product.matrices:
            experts = _experts(weight, used, name, tensors, kwargs, whole)
            experts = experts.expand(whole.shape).select(column, 0).reshape(-1)
        inputs = _inputs(name, tensors, used, column, by_vector)
        bias = _bias(args, kwargs) if name == "linear" else None
        # What the parameter's memory holds side by side tells how a matrix lies in it.
        by_column = used.stride(-2 if name == "linear" or column == -2 else -1) == 1
        changed = product.transform(
            Vectors(values, tokens, experts, self._count, inputs, bias, by_column)
        )
        if changed is values and values.data_ptr() == out.data_ptr():
            return out
        changed = changed.reshape(by_vector.shape).movedim(-1, column).reshape(out.shape)
        self._note(changed, known)
        return changed


_PLAIN = frozenset(["linear", "matmul", "__matmul__", "mm", "bmm"]) | _GROUPED


def _inputs(
    name: str, tensors: list[Tensor], used: Tensor, column: int, by_vector: Tensor
) -> Tensor | None:
    """Return the inputs of a product as (vectors, inputs), in the order of its vectors."""
    others = [each for each in tensors[:2] if each is not used]
    if name not in _PLAIN or len(others) != 1 or column < -others[0].dim():
        return None
    inputs = others[0].movedim(column, -1)
    if inputs.shape[:-1] != by_vector.shape[:-1]:
        return None
    return inputs.reshape(-1, inputs.shape[-1])


def _bias(args: Any, kwargs: Any) -> Tensor | None:
    bias: Tensor | None = kwargs.get("bias", args[2] if len(args) > 2 else None)
    return bias


def _experts(
    weight: _Weight, used: Tensor, name: str, tensors: list[Tensor], kwargs: Any, out: Tensor
) -> Tensor:
    """Number the matrices behind an output, in a shape that broadcasts to it."""
    product = weight.product
    if name in _GROUPED:
        offsets = kwargs.get("offs")
        if offsets is None:
            offsets = tensors[2]
        rows = torch.arange(out.shape[0], device=out.device, dtype=offsets.dtype)
        # Vectors beyond the last offset are not computed.
        return torch.searchsorted(offsets, rows, right=True).clamp(max=product.matrices - 1)[
            :, None
        ]
    held = weight.held(used)
    assert held is not None
    if len(held) == 1:
        return held.reshape((1,) * out.dim())
    size = product.parameter.numel() // product.matrices
    for dim in range(used.dim()):
        if used.shape[dim] == len(held) and used.stride(dim) == size:
            return held.reshape(-1, *[1] * (used.dim() - dim - 1))
    raise RuntimeError(f"ft2 cannot tell the experts apart in a product with {product}")


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        # Some kinds of tensors (quantised ones, say) hold their numbers in others.
        return 0


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The place of a tensor in its storage, in bytes."""
    span = 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + int(span)) * tensor.element_size()


def _first_numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first floating-point tensor that a module is given."""
    return next((each for each in tensors_in((args, kwargs)) if each.is_floating_point()), None)
