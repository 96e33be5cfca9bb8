"""Follow the tokens of a batch through one module, to the products with its raw parameters.

Experts pack the tokens that were routed to them, routers and mixers multiply with parameters of
their own: nothing there is the output of a module with one vector for each token in order. While
the module runs, each tensor of its forward is followed together with the numbers of the tokens
that it holds, so that the vectors of a product can be told apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Product", "Trail", "Vectors", "first_numbers"]


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
    """

    values: Tensor
    tokens: Tensor
    experts: Tensor | None
    count: int


Transform = Callable[[Vectors], Tensor]


@dataclass(frozen=True)
class Product:
    """A parameter whose products are to be found.

    Attributes
    ----------
    parameter:
        The parameter, one matrix or several.
    width:
        Columns of its product.
    matrices:
        How many matrices it holds; 0 for one.
    transform:
        Takes the vectors and returns their values, or others in their place.
    """

    parameter: Tensor
    width: int
    matrices: int
    transform: Transform


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
_VIEWS = frozenset(
    [
        "view",
        "reshape",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "flatten",
        "unflatten",
        "expand",
        "split",
        "chunk",
        "unbind",
        "narrow",
        "select",
        "movedim",
        "moveaxis",
        "swapaxes",
        "swapdims",
        "t",
        "T",
        "mT",
        "view_as",
        "tensor_split",
    ]
)
_LOOKUPS = frozenset(
    [
        "__getitem__",
        "index_select",
        "repeat",
        "repeat_interleave",
        "tile",
        "cat",
        "concat",
        "stack",
        "roll",
        "flip",
    ]
)


@dataclass(frozen=True)
class _Weight:
    product: Product
    chosen: Tensor | None


class Trail(TorchFunctionMode):
    """Follows one run of one module.

    Parameters
    ----------
    products:
        The parameters whose products are to be found.
    given:
        The first numbers that the module was given: (rows, tokens, ...) or (tokens, columns).
    """

    def __init__(self, products: list[Product], given: Tensor) -> None:
        super().__init__()
        lead = given.shape[:-1] if given.dim() == 2 else given.shape[:2]
        self._count = lead.numel()
        self._tokens: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._weights = {_address(each.parameter): _Weight(each, None) for each in products}
        self._kept: list[Tensor] = []
        numbers = torch.arange(self._count, device=given.device).reshape(lead)
        shape = (*lead, *[1] * (given.dim() - len(lead)))
        self._note(given, numbers.reshape(shape).expand(given.shape))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__
        tensors = list(_tensors((args, tuple(kwargs.values()))))
        if not tensors:
            return out
        weights = [self._weights[key] for key in map(_address, tensors) if key in self._weights]
        followed = [each for each in tensors if self._numbers(each) is not None]
        if weights and not followed:
            self._derive(name, args, weights[0], out)
        if not followed:
            return out
        self._follow(name, func, args, kwargs, followed, out)
        if weights and name in _MATMULS and isinstance(out, Tensor):
            return self._multiplied(name, tensors, weights[0], kwargs, out)
        return out

    def _note(self, tensor: Tensor, tokens: Tensor) -> None:
        self._tokens[id(tensor)] = (weakref.ref(tensor), tokens)

    def _numbers(self, tensor: Tensor) -> Tensor | None:
        reference, tokens = self._tokens.get(id(tensor), (None, None))
        return tokens if reference is not None and reference() is tensor else None

    def _derive(self, name: str, args: tuple[Any, ...], weight: _Weight, out: Any) -> None:
        """Know weights again that were looked up, cast or copied."""
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() < 2:
            return
        if _address(out) in self._weights:
            return
        chosen = weight.chosen
        if name in ("__getitem__", "index_select"):
            index = args[-1]
            if not isinstance(index, Tensor) or index.is_floating_point():
                return
            chosen = index.reshape(-1)
        # While it is known by its address, the memory must not be given to another tensor.
        self._kept.append(out)
        self._weights[_address(out)] = _Weight(weight.product, chosen)

    def _follow(
        self, name: str, func: Any, args: Any, kwargs: Any, followed: list[Tensor], out: Any
    ) -> None:
        outs = [out] if isinstance(out, Tensor) else out
        if not isinstance(outs, (list, tuple)):
            return
        outs = [each for each in outs if isinstance(each, Tensor) and each.is_floating_point()]
        if not outs or all(self._numbers(each) is not None for each in outs):
            return
        numbers = [found for found in map(self._numbers, followed) if found is not None]
        moved: list[Tensor] | None = None
        if name in _VIEWS or name in _LOOKUPS:
            moved = self._moved(name, func, args, kwargs)
        for position, each in enumerate(outs):
            candidates = numbers if moved is None or len(moved) != len(outs) else [moved[position]]
            tokens = next(filter(None.__ne__, (_fit(n, each.shape) for n in candidates)), None)
            if tokens is not None:
                self._note(each, tokens)

    def _moved(self, name: str, func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
        """Move the numbers as the function moves the tensor: run it on them."""
        is_view = name in _VIEWS or (name == "__getitem__" and not _has_tensor(args[1]))

        def stand_in(value: Any) -> Any:
            if isinstance(value, Tensor):
                numbers = self._numbers(value)
                if numbers is None:
                    return value
                return numbers if is_view else _compress(numbers)
            if isinstance(value, (list, tuple)):
                return type(value)(stand_in(each) for each in value)
            return value

        try:
            moved = func(*stand_in(args), **{key: stand_in(each) for key, each in kwargs.items()})
        except (RuntimeError, IndexError, TypeError):
            return None
        return [moved] if isinstance(moved, Tensor) else list(moved)

    def _multiplied(
        self, name: str, tensors: list[Tensor], weight: _Weight, kwargs: Any, out: Tensor
    ) -> Tensor:
        product = weight.product
        numbers = self._numbers(out)
        if numbers is None:
            raise RuntimeError(
                "ft2 lost sight of the tokens on their way to a product with a parameter of shape "
                f"{tuple(product.parameter.shape)}"
            )
        column = -1
        if name not in _GROUPED and name != "linear" and _is_left(tensors, self._weights):
            column = -2
        if out.shape[column] != product.width:
            out, numbers = out.flatten(-2), numbers.flatten(-2)
            if out.shape[-1] != product.width:
                raise RuntimeError(
                    f"ft2 expected {product.width} columns in a product with a parameter of shape "
                    f"{tuple(product.parameter.shape)}, and found an output of {tuple(out.shape)}"
                )
        return _transformed(
            product, weight, name, tensors, kwargs, out, numbers, column, self._count
        )


def _transformed(
    product: Product,
    weight: _Weight,
    name: str,
    tensors: list[Tensor],
    kwargs: Any,
    out: Tensor,
    numbers: Tensor,
    column: int,
    count: int,
) -> Tensor:
    by_vector = out.movedim(column, -1)
    tokens = numbers.select(column, 0).reshape(-1)
    values = by_vector.reshape(-1, product.width)
    experts = None
    if product.matrices:
        experts = _experts(product, weight, name, tensors, kwargs, out)
        experts = experts.expand(out.shape).select(column, 0).reshape(-1)
    changed = product.transform(Vectors(values, tokens, experts, count))
    if changed is values and values.data_ptr() == out.data_ptr():
        return out
    return changed.reshape(by_vector.shape).movedim(-1, column)


def _experts(
    product: Product, weight: _Weight, name: str, tensors: list[Tensor], kwargs: Any, out: Tensor
) -> Tensor:
    """Number the matrices behind an output, in a shape that broadcasts to it."""
    if name in _GROUPED:
        offsets = kwargs.get("offs")
        if offsets is None:
            offsets = tensors[2]
        rows = torch.arange(out.shape[0], device=out.device, dtype=offsets.dtype)
        # Vectors beyond the last offset are not computed.
        return torch.searchsorted(offsets, rows, right=True).clamp(max=product.matrices - 1)[
            :, None
        ]
    if weight.chosen is not None:
        return weight.chosen.reshape(-1, *[1] * (out.dim() - 1))
    used = next(each for each in tensors if _address(each) == _address(product.parameter))
    size = product.parameter.numel() // product.matrices
    if used.numel() == size:
        expert = (used.storage_offset() - product.parameter.storage_offset()) // size
        return torch.full((1,) * out.dim(), expert, device=out.device)
    dim = next(
        dim
        for dim in range(used.dim())
        if used.shape[dim] == product.matrices and used.stride(dim) == size
    )
    numbers = torch.arange(product.matrices, device=out.device)
    return numbers.reshape(-1, *[1] * (used.dim() - dim - 1))


def _is_left(tensors: list[Tensor], weights: dict[int, _Weight]) -> bool:
    """Whether the weight is the left one of the two factors; a bias comes before both."""
    left = tensors[-2]
    return _address(left) in weights


def _compress(numbers: Tensor) -> Tensor:
    """Return the numbers with size 1 wherever they do not depend on a dimension."""
    for dim, (size, stride) in enumerate(zip(numbers.shape, numbers.stride(), strict=True)):
        if stride == 0 and size > 1:
            numbers = numbers.narrow(dim, 0, 1)
    return numbers


def _fit(numbers: Tensor, shape: torch.Size) -> Tensor | None:
    """Broadcast numbers to a tensor's shape, or find the dimensions of their tokens in it."""
    if numbers.shape == shape:
        return numbers
    small = _compress(numbers)
    if small.dim() == len(shape):
        if all(a in (1, b) for a, b in zip(small.shape, shape, strict=True)):
            return small.expand(shape)
        return None
    lead = list(small.shape)
    while lead and lead[-1] == 1:
        lead.pop()
    if tuple(lead) != tuple(shape[: len(lead)]):
        return None
    return small.reshape(*lead, *[1] * (len(shape) - len(lead))).expand(shape)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _has_tensor(index: Any) -> bool:
    return any(True for _ in _tensors(index)) or isinstance(index, list)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def first_numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first floating-point tensor that a module is given."""
    given = _tensors((args, tuple(kwargs.values())))
    return next((each for each in given if each.is_floating_point()), None)
