"""Move the numbers of a batch's tokens as functions of torch move the vectors that hold them.

The numbers of a tensor say, element by element, which token it belongs to; -1 where none is known.
They are kept broadcast: a dimension that they do not depend on has stride 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "leaves_gaps", "letters_of_product", "moved", "tensors_in"]

UNKNOWN = -1

Numbers = Callable[[Tensor], "Tensor | None"]

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
# Which dimension the function moves elements along is its argument of that name or place.
_ALONG = {
    "index_select": 1,
    "repeat_interleave": 2,
    "gather": 1,
    "take_along_dim": 2,
    "roll": 2,
    "flip": 1,
}
_JOINS = frozenset(["cat", "concat", "stack"])
_REPEATS = frozenset(["repeat", "tile"])
_WRITES = {
    "index_add": "index_copy",
    "index_copy": "index_copy",
    "scatter": "scatter",
    "scatter_add": "scatter",
    "scatter_reduce": "scatter",
    "index_put": "index_put",
}
_REDUCTIONS = frozenset(["sum", "mean", "amax", "amin", "prod", "nansum", "logsumexp"])
_CONVOLUTIONS = frozenset(["conv1d"])
# What comes first tells where the others' elements go.
_BY_QUERY = frozenset(["scaled_dot_product_attention"])
# Their elements change places in a way that depends on what they are.
_SORTS = frozenset(["sort", "topk", "argsort", "msort", "masked_select", "masked_scatter"])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)


def leaves_gaps(name: str) -> bool:
    """Whether what a function of that name puts out can be of no token in some places."""
    base = name.removesuffix("_") if not name.startswith("__") else name
    return base in _JOINS or base in _WRITES or base in _CONVOLUTIONS or base == "__setitem__"


def moved(
    name: str, func: Any, args: Any, kwargs: Any, out: Any, numbers_of: Numbers
) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors that `func` put out or wrote to, each with its numbers.

    Tensors whose numbers are not known are left out.

    Parameters
    ----------
    name, func, args, kwargs, out:
        A function, what it was given and what it returned.
    numbers_of:
        The numbers of a tensor that it was given, in its shape, or None.
    """
    base = name if name.startswith("__") else name.removesuffix("_")
    if base in _WRITES or base == "__setitem__":
        written = args[0] if base == "__setitem__" else out
        found = _or_none(_written, base, args, kwargs, numbers_of)
        return [] if found is None else [(written, found)]
    outs = [each for each in _outs(out) if each.is_floating_point()]
    if base in _SORTS or not outs:
        return []
    if base in _VIEWS or base == "__getitem__" or base in _ALONG or base in _REPEATS:
        return _pairs(outs, _or_none(_rearranged, base, func, args, kwargs, numbers_of))
    if base in _JOINS:
        return _pairs(outs, _or_none(_joined, func, args, kwargs, numbers_of))
    if base in _CONVOLUTIONS:
        return _pairs(outs, _or_none(_convolved, args, kwargs, outs[0], numbers_of))
    if base in _REDUCTIONS:
        return _pairs(outs, _or_none(_reduced, args, kwargs, outs[0], numbers_of))
    if base == "einsum":
        return _pairs(outs, _or_none(_summed, args, numbers_of))
    inputs = list(tensors_in((args, kwargs)))
    if base in _BY_QUERY:
        inputs = inputs[:1]
    elif base == "copy":
        inputs = inputs[1:]
    candidates = map(numbers_of, inputs)
    known = [each for each in candidates if each is not None]
    pairs = []
    for each in outs:
        fitting = (_fit(numbers, each.shape) for numbers in known)
        numbers = next((one for one in fitting if one is not None), None)
        if numbers is None and known:
            # A reshape writes numbers out that it cannot keep broadcast.
            numbers = _fit(_broadcast(known[0]), each.shape)
        if numbers is not None:
            pairs.append((each, numbers))
    return pairs


def _outs(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return (
        [each for each in out if isinstance(each, Tensor)] if isinstance(out, (list, tuple)) else []
    )


def _pairs(outs: list[Tensor], numbers: Any) -> list[tuple[Tensor, Tensor]]:
    found = _outs(numbers)
    if len(found) != len(outs):
        return []
    fitting = [_fit(each, out.shape) for each, out in zip(found, outs, strict=True)]
    return [(out, each) for out, each in zip(outs, fitting, strict=True) if each is not None]


def _or_none(compute: Callable[..., Any], *args: Any) -> Any:
    try:
        return compute(*args)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None


def _rearranged(name: str, func: Any, args: Any, kwargs: Any, numbers_of: Numbers) -> Any:
    """Run the function on the numbers, with size 1 wherever they need not be looked at."""
    numbers = numbers_of(args[0])
    if numbers is None:
        return None
    if name in _ALONG:
        place = _ALONG[name]
        dim = kwargs.get("dim", kwargs.get("dims", args[place] if len(args) > place else None))
        dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
        keep = {each % numbers.dim() for each in dims} if dims else set(range(numbers.dim()))
        if name in ("gather", "take_along_dim"):
            keep = set(range(numbers.dim()))
        numbers = _compressed(numbers, keep)
    elif name in _REPEATS:
        factors = args[1:] if isinstance(args[1], int) else args[1]
        offset = len(factors) - numbers.dim()
        keep = {dim for dim in range(numbers.dim()) if factors[dim + offset] != 1}
        numbers = _compressed(numbers, keep)
    elif name == "__getitem__" and any(True for _ in tensors_in(args[1])):
        numbers = _compressed(numbers, _indexed(args[1], numbers.dim()))
    elif name == "view":
        # Broadcast numbers do not lie side by side as the elements do.
        func = Tensor.reshape
    return func(numbers, *args[1:], **kwargs)


def _indexed(index: Any, dims: int) -> set[int]:
    """The dimensions that an index with tensors speaks of."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(each is None or each is Ellipsis for each in parts):
        return set(range(dims))
    sizes = [
        each.dim() if isinstance(each, Tensor) and each.dtype == torch.bool else 1 for each in parts
    ]
    return set(range(sum(sizes)))


def _joined(func: Any, args: Any, kwargs: Any, numbers_of: Numbers) -> Tensor:
    parts = [
        numbers if numbers is not None else _unknown(each)
        for each, numbers in ((each, numbers_of(each)) for each in args[0])
    ]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    keep = {dim % parts[0].dim()} if func.__name__ != "stack" else set()
    keep |= {at for each in parts for at in range(each.dim()) if _depends(each, at)}
    joined: Tensor = func([_compressed(each, keep) for each in parts], *args[1:], **kwargs)
    return joined


def _written(name: str, args: Any, kwargs: Any, numbers_of: Numbers) -> Tensor:
    def numbers_in(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return UNKNOWN
        found = numbers_of(value) if value.is_floating_point() else None
        return _unknown(value) if found is None else found

    def argument(place: int, *names: str) -> Any:
        named = next((kwargs[each] for each in names if each in kwargs), None)
        return args[place] if len(args) > place else named

    target = numbers_in(args[0])
    if name == "__setitem__":
        numbers = _copied(target)
        numbers[args[1]] = numbers_in(args[2])
        return _broadcast(numbers)
    if name == "index_put":
        return _broadcast(_copied(target).index_put_(args[1], numbers_in(args[2])))
    dim, index = argument(1, "dim"), argument(2, "index")
    source = numbers_in(argument(3, "src", "source", "value"))
    if _WRITES[name] == "scatter":
        return _broadcast(_copied(target).scatter(dim, index, source))
    # Dimensions that no number depends on need not be written out.
    keep = {at for each in (target, source) for at in range(each.dim()) if _depends(each, at)}
    keep.add(dim % target.dim())
    small = _compressed(target, keep).index_copy(dim, index, _compressed(source, keep))
    return small.expand(target.shape)


def _copied(numbers: Tensor) -> Tensor:
    return numbers.clone(memory_format=torch.contiguous_format)


def _broadcast(numbers: Tensor) -> Tensor:
    """Find out which dimensions the numbers do not depend on."""
    small = numbers
    for dim in range(numbers.dim()):
        first = small.narrow(dim, 0, min(1, small.shape[dim]))
        if bool((small == first).all()):
            small = first
    return small.expand(numbers.shape)


def _convolved(args: Any, kwargs: Any, out: Tensor, numbers_of: Numbers) -> Tensor | None:
    """A causal convolution's vectors belong to the newest token that went into them."""
    numbers = numbers_of(args[0])
    if numbers is None or _depends(numbers, -2):
        return None
    line = numbers.narrow(-2, 0, 1)
    before, after = line.shape[-1], out.shape[-1]
    # Longer: padded on both sides, and what comes after the last token is cut off later.
    line = line[..., max(before - after, 0) :]
    if after > before:
        line = torch.nn.functional.pad(line, (0, after - before), value=UNKNOWN)
    return line.expand(out.shape)


def _reduced(args: Any, kwargs: Any, out: Tensor, numbers_of: Numbers) -> Tensor | None:
    """What was computed from several tokens belongs to the newest of them."""
    numbers = numbers_of(args[0])
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if numbers is None or dim is None or isinstance(dim, torch.dtype):
        return None
    dims = {each % numbers.dim() for each in ([dim] if isinstance(dim, int) else dim)}
    keep = {at for at in dims if _depends(numbers, at)}
    newest = numbers
    for at in range(numbers.dim()):
        if at in dims and at not in keep:
            newest = newest.narrow(at, 0, 1)
    newest = _compressed(newest, keep).amax(tuple(dims), keepdim=True)
    if out.dim() < numbers.dim():
        newest = newest.squeeze(tuple(dims))
    return newest.expand(out.shape)


def _summed(args: Any, numbers_of: Numbers) -> Tensor | None:
    """In an ``einsum``, the tokens are where the letters of their dimensions are."""
    equation = _equation(args)
    if equation is None:
        return None
    inputs, output = equation
    operands = list(tensors_in(args[1:]))
    sizes = {
        letter: size
        for letters, operand in zip(inputs, operands, strict=True)
        for letter, size in zip(letters, operand.shape, strict=True)
    }
    for letters, operand in zip(inputs, operands, strict=True):
        numbers = numbers_of(operand)
        if numbers is None:
            continue
        used = [at for at in range(numbers.dim()) if _depends(numbers, at)]
        if not all(letters[at] in output for at in used):
            continue
        small = _compressed(numbers, set(used))
        places = [letters.index(each) for each in output if each in letters]
        rest = [at for at in range(numbers.dim()) if at not in places]
        small = (
            small.permute(*places, *rest).flatten(len(places))[..., 0]
            if rest
            else (small.permute(*places))
        )
        for at, letter in enumerate(output):
            if letter not in letters:
                small = small.unsqueeze(at)
        return small.expand([sizes[letter] for letter in output])
    return None


def letters_of_product(args: Any, is_weight: Callable[[Tensor], bool]) -> int | None:
    """Return the dimension of an ``einsum``'s output that only its weight has, if it is one."""
    equation = _equation(args)
    if equation is None:
        return None
    inputs, output = equation
    operands = list(tensors_in(args[1:]))
    others = "".join(
        letters for letters, operand in zip(inputs, operands, strict=True) if not is_weight(operand)
    )
    own = [at for at, letter in enumerate(output) if letter not in others]
    return own[0] - len(output) if len(own) == 1 else None


def _equation(args: Any) -> tuple[list[str], str] | None:
    equation = args[0].replace(" ", "") if isinstance(args[0], str) else ""
    if "->" not in equation or "." in equation:
        return None
    left, output = equation.split("->")
    return left.split(","), output


def _unknown(tensor: Tensor) -> Tensor:
    return torch.full((), UNKNOWN, device=tensor.device).expand(tensor.shape)


def _depends(numbers: Tensor, dim: int) -> bool:
    return numbers.stride(dim) != 0 and numbers.shape[dim] > 1 and bool(numbers.numel())


def _compressed(numbers: Tensor, keep: set[int]) -> Tensor:
    """Return the numbers with size 1 wherever they do not depend on a dimension, but for `keep`."""
    for dim in range(numbers.dim()):
        if dim not in keep and not _depends(numbers, dim) and numbers.shape[dim]:
            numbers = numbers.narrow(dim, 0, 1)
    return numbers


def _fit(numbers: Tensor, shape: torch.Size) -> Tensor | None:
    """Broadcast numbers to a tensor's shape, or find the dimensions of their tokens in it."""
    if numbers.shape == shape:
        return numbers
    small = _compressed(numbers, set())
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
