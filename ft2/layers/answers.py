"""Answers for a forward that asks about numbers, when there are none.

Control flow that depends on data (which expert is hit, whether a mask is full) is led into the
branch in which everything happens once: one token is routed, one element is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Answering", "answered", "constants_in_index", "known_numbers", "tensors_in"]


class Answering(TorchDispatchMode):
    """Lets what runs meanwhile ask about numbers where there are none, and go on.

    Attributes
    ----------
    asked:
        How many answers could decide what runs next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.asked += _decides(func, args, kwargs or {})
        return answered(func, args, kwargs or {})


def answered(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what `func` computes of its arguments on the meta device, or an answer in place."""
    positional, named = _on_meta((args, kwargs))
    answer = _answer_of(func, positional, named)
    return func(*positional, **named) if answer is None else answer(func, *positional, **named)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)


def known_numbers(tensor: Tensor) -> Tensor | None:
    """Return the numbers of a constant that was moved to the meta device, or None."""
    return getattr(tensor, "_ft2_numbers", None) if tensor.is_meta else tensor


def constants_in_index(value: Any) -> Any:
    """Return an index with tensors for its lists: torch would put their numbers on meta."""
    if isinstance(value, list) and all(isinstance(each, int) for each in value):
        return torch.tensor(value)
    return tuple(map(constants_in_index, value)) if isinstance(value, tuple) else value


def _on_meta(value: Any) -> Any:
    """Return `value` with every tensor in it on the meta device, if any is.

    Constants among themselves keep their numbers.
    """
    return _to_meta(value) if any(each.is_meta for each in tensors_in(value)) else value


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_meta or value.dim() == 0 else value.to("meta")
    if isinstance(value, dict):
        return {name: _to_meta(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_meta(each) for each in value)
    return value


def _answer_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any] | None:
    """Return what answers in place of `func`, called with it and its arguments.

    None if the function asks for no numbers: it can be run as it is.
    """
    answer = _ANSWERS.get(func.overloadpacket)
    if answer is None or not any(each.is_meta for each in tensors_in((args, kwargs))):
        # Constants have numbers, and moving one to the meta device is all that is asked of it.
        answer = _MOVES.get(func.overloadpacket)
    return answer


def _decides(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether Python sees numbers of the result, or their number, where there are none."""
    if not any(each.is_meta for each in tensors_in((args, kwargs))):
        return False
    packet = func.overloadpacket
    return packet in _DECIDING or (packet in _DECIDING_IF and _DECIDING_IF[packet](*args, **kwargs))


def _scalar(func: Any, tensor: Tensor) -> Any:
    if tensor.dtype == torch.bool:
        # Checks ask whether all is well; whatever else is asked is answered no.
        return getattr(tensor, "_ft2_is_all", False)
    return 1.0 if tensor.is_floating_point() else 1


def _to_copy(func: Any, tensor: Tensor, **options: Any) -> Tensor:
    is_list = _is_list(tensor, options)
    if tensor.is_meta:
        options.pop("device", None)
    if is_list and not tensor.is_floating_point() and not tensor.is_complex():
        # What is asked for as a list of numbers (tokens of each expert) has to have some.
        return torch.zeros(tensor.shape, dtype=options.get("dtype") or tensor.dtype)
    moved: Any = func(tensor, **options)
    if moved.is_meta and not tensor.is_meta:
        moved._ft2_numbers = tensor
    return moved


def _is_list(tensor: Tensor, options: dict[str, Any]) -> bool:
    device = options.get("device")
    return tensor.is_meta and device is not None and torch.device(device).type == "cpu"


def _split_with_sizes(func: Any, tensor: Tensor, sizes: list[int], dim: int = 0) -> Any:
    missing = tensor.shape[dim] - sum(sizes)
    return func(tensor, [sizes[0] + missing, *sizes[1:]], dim)


def _all(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    result: Any = func(*args, **kwargs)
    result._ft2_is_all = True
    return result


def _nonzero(func: Any, tensor: Tensor) -> Tensor:
    found = min(1, tensor.numel())
    return torch.empty((found, tensor.dim()), dtype=torch.int64, device="meta")


def _equal(func: Any, left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape


def _masked_select(func: Any, tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.new_empty((1,))


def _bincount(func: Any, tensor: Tensor, weights: Any = None, minlength: int = 0) -> Tensor:
    return torch.empty((max(minlength, 1),), dtype=torch.int64, device="meta")


def _histc(func: Any, tensor: Tensor, bins: int = 100, *bounds: Any) -> Tensor:
    return tensor.new_empty((bins,))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _index(func: Any, tensor: Tensor, indices: Any) -> Tensor:
    found: list[Tensor | None] = []
    for index in indices:
        if not _is_mask(index):
            found.append(index)
        else:
            found.extend(torch.empty((1,), dtype=torch.int64, device="meta") for _ in index.shape)
    return func(tensor, found)


def _index_put(func: Any, tensor: Tensor, indices: Any, values: Tensor, *rest: Any) -> Tensor:
    return tensor if func._schema.is_mutable else torch.empty_like(tensor)


def _grouped_mm(func: Any, hidden: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    # The meta kernel takes bfloat16 only, the others every type.
    return hidden.new_empty((*hidden.shape[:-1], weight.shape[-1]))


def _repeat_interleave(func: Any, repeats: Tensor, output_size: int | None = None) -> Tensor:
    size = repeats.shape[0] if output_size is None else output_size
    return torch.empty((size,), dtype=torch.int64, device="meta")


_aten = torch.ops.aten
_ANSWERS: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense: _scalar,
    _aten.item: _scalar,
    _aten.all: _all,
    _aten._is_all_true: _all,
    _aten.split_with_sizes: _split_with_sizes,
    _aten.nonzero: _nonzero,
    _aten.equal: _equal,
    _aten.masked_select: _masked_select,
    _aten.bincount: _bincount,
    _aten.histc: _histc,
    _aten.index: _index,
    _aten.index_put: _index_put,
    _aten.index_put_: _index_put,
    _aten._grouped_mm: _grouped_mm,
    _aten.repeat_interleave: _repeat_interleave,
}
# What tells numbers to Python, or has a shape that depends on numbers; then what may, by arguments.
_DECIDING = frozenset(
    [
        _aten._local_scalar_dense,
        _aten.item,
        _aten.equal,
        _aten.nonzero,
        _aten.masked_select,
        _aten.bincount,
    ]
)
_DECIDING_IF: dict[Any, Callable[..., bool]] = {
    _aten._to_copy: lambda tensor, **options: _is_list(tensor, options),
    _aten.index: lambda tensor, indices: any(map(_is_mask, indices)),
    _aten.repeat_interleave: lambda repeats, output_size=None: output_size is None,
}
_MOVES: dict[Any, Callable[..., Any]] = {_aten._to_copy: _to_copy}
