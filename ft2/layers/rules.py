"""What each operation does with the columns that its inputs hold.

The rule of FT2 (section 4.1.2) is: a layer is critical if no scaling operation or activation stands
between it and the next linear layer. Where it leaves doubt, this is how it is read here:

- A softmax ends a path, and so does every elementwise activation (``silu``, ``gelu``, ``sigmoid``,
  ``exp``, ...), be it called by its name or written out: the product of a value with its own
  activation is that activation. So does each activation module of torch and of transformers.
- A *scaling operation* is the constant factor on attention scores, which the softmax follows: it
  ends at the softmax. A constant factor elsewhere (residual and embedding multipliers) ends
  nothing: it shrinks a fault and the values beside it alike.
- Norms, residual additions and rotations end nothing (Table 1 has the layers before a residual
  addition and a norm as critical). A norm's own statistics are not followed: a fault in them
  reaches the values as a common factor.
- Products with other data end nothing: a value's weighted sum in attention, the product of ``up``
  with the activated gate, an expert's output and its routing weight, a state-space model's B and C.
- A convolution along the tokens, each channel by itself, is no linear layer and ends nothing.
- A clamp to constants ends nothing: up to its limits a fault passes.
- Choosing (``topk``, ``argmax``, comparisons) makes indices, which hold none of the values: a path
  that only leads there ends there.
- What the model returns counts as reaching a linear layer: another layer comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ft2.layers.answers import known_numbers, tensors_in
from ft2.layers.provenance import NOTHING, Origin, Provenance, Stream

__all__ = [
    "ACTIVATIONS",
    "ADDITION",
    "CHOICE",
    "MATRIX_PRODUCT",
    "NORM",
    "SOFTMAX",
    "SOFTMAXES",
    "WEIGHTED_SUM",
    "Operation",
    "activation_of",
    "is_activation",
    "rule_of",
]

SOFTMAX = "softmax"
NORM = "norm"
CHOICE = "choice"

# What a path goes through, in the words of a projection's reason.
ADDITION = "an addition"
MATRIX_PRODUCT = "a product of matrices"
WEIGHTED_SUM = "a weighted sum"

ACTIVATIONS = frozenset(
    [
        "celu",
        "elu",
        "erf",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "gelu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log",
        "log1p",
        "log2",
        "log_sigmoid_forward",
        "logit",
        "mish",
        "prelu",
        "_prelu_kernel",
        "relu",
        "relu6",
        "rrelu",
        "selu",
        "sigmoid",
        "silu",
        "sin",
        "cos",
        "softplus",
        "softshrink",
        "special_expit",
        "tanh",
        "tanhshrink",
        "threshold",
    ]
)
SOFTMAXES = frozenset(["_softmax", "_log_softmax", "_safe_softmax", "logsumexp"])
_STATISTICS = frozenset(
    [
        "rsqrt",
        "sqrt",
        "reciprocal",
        "var",
        "var_mean",
        "std",
        "std_mean",
        "linalg_vector_norm",
        "norm",
        "amax",
        "amin",
        "aminmax",
        "sign",
        "sgn",
        "heaviside",
    ]
)
_MOVES = frozenset(
    [
        "clone",
        "_to_copy",
        "cat",
        "repeat",
        "constant_pad_nd",
        "roll",
        "flip",
        "tril",
        "triu",
        "_reshape_copy",
        "view_copy",
        "slice_scatter",
        "select_scatter",
        "lift_fresh_copy",
        "stack",
        "reflection_pad1d",
        "unfold_copy",
    ]
)
_LOOKUPS = frozenset(["index", "index_select", "gather", "take_along_dim", "repeat_interleave"])
_WRITES = frozenset(
    [
        "index_put",
        "index_copy",
        "index_add",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "masked_scatter",
        "index_reduce",
        "_unsafe_index_put",
    ]
)
_SORTS = frozenset(["sort", "topk", "kthvalue", "max", "min", "median", "mode"])
_CHOICES = frozenset(
    [
        "argmax",
        "argmin",
        "argsort",
        "gt",
        "ge",
        "lt",
        "le",
        "eq",
        "ne",
        "isnan",
        "isinf",
        "multinomial",
    ]
)
_SUMS = frozenset(["sum", "nansum", "prod"])
_MATMULS = frozenset(["mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "linear"])
_FUSED_ATTENTION = "_scaled_dot_product"


@dataclass(frozen=True)
class Operation:
    """One operation as it ran.

    Attributes
    ----------
    name:
        Its name, the same in place or not.
    args, kwargs, out:
        What went in, and the first tensor that came out.
    known:
        What is known of the tensors.
    end:
        Called with a stream and the activation or softmax at which its path ends.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    known: Provenance
    end: Callable[[Stream, str], None]

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that went in, in order."""
        return list(tensors_in((self.args, tuple(self.kwargs.values()))))

    def is_data(self, value: Any) -> bool:
        """Whether `value` is a tensor that depends on the model's input."""
        return isinstance(value, Tensor) and self.known.origin(value) is Origin.DATA


def activation_of(name: str) -> str:
    """Return what readers know the activation by that an operation of that name computes."""
    return (
        "sigmoid"
        if name == "glu"
        else name.strip("_").removesuffix("_forward").removesuffix("_kernel")
    )


def is_activation(module: nn.Module) -> bool:
    """Whether the module is an activation of torch's or of transformers', whatever it computes."""
    home = type(module).__module__
    is_of_torch = home == nn.SiLU.__module__ and not isinstance(module, nn.MultiheadAttention)
    return is_of_torch or home == "transformers.activations"


Rule = Callable[[Operation], Iterator[Stream]]


def rule_of(name: str) -> Rule:
    """Return what the operation of that name does; what is not known keeps everything."""
    if name in _RULES:
        return _RULES[name]
    if name.startswith(_FUSED_ATTENTION):
        return _fused_attention
    return _elementwise


def _fit(stream: Stream, shape: torch.Size) -> Stream:
    """Broadcast a stream's labels to `shape`, or do without them."""
    if stream.labels is None or stream.labels.shape == shape:
        return stream
    try:
        return replace(stream, labels=stream.labels.expand(shape))
    except RuntimeError:
        return stream.blurred()


def _passing(stream: Stream, word: str) -> Stream:
    return stream if word in stream.via else replace(stream, via=(*stream.via, word))


def _elementwise(op: Operation) -> Iterator[Stream]:
    for tensor in op.tensors:
        for stream in op.known.read(tensor):
            yield _fit(stream, op.out.shape)


def _add(op: Operation) -> Iterator[Stream]:
    operands = [each for each in op.args[:2] if isinstance(each, Tensor)]
    for tensor in operands:
        others = [other for other in operands if other is not tensor and op.is_data(other)]
        beside = {stream.source for other in others for stream in op.known.read(other)}
        for stream in op.known.read(tensor):
            if others and stream.ended is not None:
                continue
            if others and stream.source not in beside:
                stream = _passing(stream, ADDITION)
            yield _fit(stream, op.out.shape)


def _multiply(op: Operation) -> Iterator[Stream]:
    operands = [each for each in op.args[:2] if isinstance(each, Tensor)]
    for index, tensor in enumerate(operands):
        other = operands[1 - index] if len(operands) == 2 else None
        beside = [] if other is None else [_fit(s, op.out.shape) for s in op.known.read(other)]
        ended = [stream for stream in beside if stream.ended is not None]
        live = {stream.source for stream in beside if stream.ended is None}
        for stream in op.known.read(tensor):
            stream = _fit(stream, op.out.shape)
            if stream.ended == NORM and stream.source in live:
                continue
            if stream.ended is not None or other is None or not op.is_data(other):
                yield stream
                continue
            activations = {str(each.ended) for each in ended} - {NORM}
            for activated in ended:
                if activated.source == stream.source and activated.ended not in (NORM, None):
                    own, stream = _split(stream, activated)
                    op.end(own, activated.ended)
            if any(each.ended == NORM and each.source == stream.source for each in ended):
                stream = _passing(stream, "a norm")
            elif activations:
                stream = _passing(stream, f"a product with {' and '.join(sorted(activations))}")
            elif not any(each.source == stream.source for each in beside):
                stream = _passing(stream, "a product")
            yield stream


def _same_along(labels: Tensor, dims: int | list[int]) -> Tensor | None:
    """Return the labels with `dims` of size 1 if they are the same along these, else None."""
    highest = labels.amax(dims, True)
    is_same = ((labels == highest) | (labels == NOTHING)).all()
    return highest if bool(is_same) else None


def _split(stream: Stream, other: Stream) -> tuple[Stream, Stream]:
    """Split a stream into what meets the same columns in `other`, and the rest."""
    if stream.labels is None or other.labels is None:
        shared = stream.present & other.present
        rest = stream.present & ~other.present
        return (
            replace(stream, columns=shared, labels=None),
            replace(stream, columns=rest, labels=None),
        )
    same = stream.labels == other.labels
    return (
        replace(stream, labels=torch.where(same, stream.labels, NOTHING)),
        replace(stream, labels=torch.where(same, NOTHING, stream.labels)),
    )


def _divide(op: Operation) -> Iterator[Stream]:
    numerator, denominator = op.args[:2]
    below = op.known.read(denominator) if isinstance(denominator, Tensor) else []
    if isinstance(numerator, Tensor):
        for stream in op.known.read(numerator):
            if stream.ended is None and any(each.source == stream.source for each in below):
                stream = _passing(stream, "a norm")
            yield _fit(stream, op.out.shape)


def _activation(op: Operation) -> Iterator[Stream]:
    name = activation_of(op.name)
    for stream in op.known.read(op.args[0]):
        if stream.ended in (None, NORM):
            op.end(stream, name)
            yield _fit(replace(stream, ended=name), op.out.shape)
        else:
            yield _fit(stream, op.out.shape)


def _softmax(op: Operation) -> Iterator[Stream]:
    for tensor in op.tensors:
        for stream in op.known.read(tensor):
            if stream.ended is None:
                op.end(stream, SOFTMAX)
    yield from ()


def _statistic(op: Operation) -> Iterator[Stream]:
    for stream in op.known.read(op.args[0]):
        if stream.ended in (None, NORM):
            yield replace(stream.blurred(), ended=NORM)


def _mean(op: Operation) -> Iterator[Stream]:
    """A mean over tokens, heads or experts is a sum; one over the columns is a norm's statistic."""
    for stream in _sum(op):
        yield stream if stream.labels is not None else replace(stream, ended=NORM)


def _power(op: Operation) -> Iterator[Stream]:
    if isinstance(op.args[0], Tensor):
        for stream in op.known.read(op.args[0]):
            exponent = op.args[1]
            if not isinstance(exponent, Tensor) and exponent < 0 and stream.ended is None:
                stream = replace(stream.blurred(), ended=NORM)
            yield _fit(stream, op.out.shape)


def _norm(op: Operation) -> Iterator[Stream]:
    for stream in op.known.read(op.args[0]):
        if stream.ended is None:
            yield _passing(_fit(stream, op.out.shape), "a norm")


def _glu(op: Operation) -> Iterator[Stream]:
    dim = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", -1)
    for stream in op.known.read(op.args[0]):
        if stream.labels is None:
            yield stream
            continue
        value, gate = stream.labels.chunk(2, dim)
        activated = replace(stream, labels=gate)
        op.end(activated, activation_of(op.name))
        yield replace(activated, ended=activation_of(op.name))
        yield _passing(replace(stream, labels=value), "a product with sigmoid")


def _move(op: Operation) -> Iterator[Stream]:
    """Move labels as the operation moves elements: run it on them."""
    seen: dict[tuple[Any, ...], Stream] = {}
    layers: dict[tuple[Any, ...], dict[int, list[Stream]]] = {}
    for position, tensor in enumerate(op.tensors):
        for stream in op.known.read(tensor):
            if stream.labels is None:
                yield stream
                continue
            seen.setdefault(stream.key, stream)
            layers.setdefault(stream.key, {}).setdefault(position, []).append(stream)
    for key, by_position in layers.items():
        for layer in range(max(map(len, by_position.values()))):
            moved = {
                position: streams[layer].labels
                for position, streams in by_position.items()
                if layer < len(streams)
            }
            try:
                labels = _run_on_labels(op, moved)
            except (RuntimeError, IndexError, TypeError):
                for streams in by_position.values():
                    yield streams[min(layer, len(streams) - 1)].blurred()
            else:
                yield _fit(replace(seen[key], labels=labels), op.out.shape)


def _run_on_labels(op: Operation, moved: dict[int, Tensor | None]) -> Tensor:
    counter = iter(range(len(op.tensors)))

    def stand_in(value: Any) -> Any:
        if isinstance(value, Tensor):
            labels = moved.get(next(counter))
            if labels is not None:
                return labels
            if value.dtype == torch.bool:
                return torch.ones(value.shape, dtype=torch.bool)
            if not value.is_floating_point():
                numbers = known_numbers(value)
                return torch.zeros(value.shape, dtype=value.dtype) if numbers is None else numbers
            return torch.full(value.shape, NOTHING, dtype=torch.int32)
        if isinstance(value, (list, tuple)):
            return type(value)(stand_in(each) for each in value)
        return value

    args = stand_in(op.args)
    if op.name == "constant_pad_nd":
        args = (*args[:2], NOTHING)
    if op.name == "_to_copy":
        return args[0]
    return getattr(torch.ops.aten, op.name)(*args)


def _select(op: Operation) -> Iterator[Stream]:
    """``where`` and ``masked_fill`` take each element from one of their operands."""
    for tensor in op.tensors:
        if tensor.dtype != torch.bool:
            for stream in op.known.read(tensor):
                yield _fit(stream, op.out.shape)


def _lookup(op: Operation) -> Iterator[Stream]:
    """Look up tokens, heads or experts: which, depends on data that is not there."""
    unknown = _unknown_dims(op)
    for stream in op.known.read(op.args[0]):
        if stream.labels is None:
            yield stream
            continue
        labels = _same_along(stream.labels, unknown) if unknown else stream.labels
        if labels is None:
            yield stream.blurred()
            continue
        try:
            moved = _run_on_labels(op, {0: labels.expand(stream.labels.shape)})
        except (RuntimeError, IndexError):
            yield stream.blurred()
        else:
            yield _fit(replace(stream, labels=moved), op.out.shape)


def _unknown_dims(op: Operation) -> list[int]:
    if op.name == "index":
        indices = op.args[1]
        return [
            dim
            for dim, index in enumerate(indices)
            if index is not None and known_numbers(index) is None
        ]
    if op.name in ("gather", "index_select") and known_numbers(op.args[2]) is None:
        return [op.args[1]]
    return []


def _write(op: Operation) -> Iterator[Stream]:
    """Values written at indices: every index of the target may hold them."""
    target, *others = op.tensors
    for stream in op.known.read(target):
        yield _fit(stream, op.out.shape)
    for tensor in others:
        for stream in op.known.read(tensor):
            labels = stream.labels
            if labels is not None and labels.dim() > 1:
                labels = _same_along(labels, list(range(labels.dim() - 1)))
            if labels is not None and labels.dim() and labels.shape[-1] == op.out.shape[-1]:
                yield replace(stream, labels=labels.reshape(-1).expand(op.out.shape))
            else:
                yield stream.blurred()


def _sorted(op: Operation) -> Iterator[Stream]:
    yield from _choice(op)
    for stream in op.known.read(op.args[0]):
        yield stream.blurred()


def _choice(op: Operation) -> Iterator[Stream]:
    for tensor in op.tensors:
        for stream in op.known.read(tensor):
            if stream.ended in (None, NORM):
                op.end(stream, CHOICE)
    yield from ()


def _sum(op: Operation) -> Iterator[Stream]:
    dims = op.args[1] if len(op.args) > 1 else None
    for stream in op.known.read(op.args[0]):
        if stream.ended is not None and stream.ended != NORM:
            continue
        if stream.labels is None or dims is None:
            yield stream.blurred()
            continue
        dims = [dims] if isinstance(dims, int) else list(dims)
        labels = _same_along(stream.labels, dims)
        if labels is not None and labels.numel() == op.out.numel():
            yield replace(stream, labels=labels.reshape(op.out.shape))
        else:
            yield stream.blurred()


def _product(op: Operation) -> Iterator[Stream]:
    """The product of two matrices of data: rows of the left, columns of the right are kept."""
    bias = op.args[0] if op.name.startswith(("add", "badd")) else None
    left, right = [each for each in op.args if isinstance(each, Tensor)][-2:]
    if bias is not None:
        for stream in op.known.read(bias):
            yield _fit(stream, op.out.shape)
    for tensor, other, contracted in ((left, right, -1), (right, left, -2)):
        # Attention weighs values by a softmax; scores and recurrences are other products.
        word = WEIGHTED_SUM if op.known.is_distribution(other) else MATRIX_PRODUCT
        for stream in op.known.read(tensor):
            if stream.ended is not None:
                continue
            stream = _passing(stream, word)
            if stream.labels is None or stream.labels.dim() < 2:
                yield stream.blurred()
                continue
            labels = _same_along(stream.labels, contracted)
            if labels is not None:
                yield _fit(replace(stream, labels=labels), op.out.shape)
            else:
                yield stream.blurred()


def _convolution(op: Operation) -> Iterator[Stream]:
    for stream in op.known.read(op.args[0]):
        stream = _passing(stream, "a convolution")
        labels = stream.labels
        if labels is not None and labels.shape[1] == op.out.shape[1]:
            labels = _same_along(labels, list(range(2, labels.dim())))
            if labels is not None:
                yield _fit(replace(stream, labels=labels), op.out.shape)
                continue
        yield stream.blurred()


def _fused_attention(op: Operation) -> Iterator[Stream]:
    query, key, value = op.args[:3]
    for tensor in (query, key):
        for stream in op.known.read(tensor):
            if stream.ended is None:
                op.end(stream, SOFTMAX)
    for stream in op.known.read(value):
        if stream.labels is None:
            yield _passing(stream, WEIGHTED_SUM)
            continue
        first = _same_along(stream.labels, 2)
        if first is None:
            yield _passing(stream.blurred(), WEIGHTED_SUM)
            continue
        groups = op.out.shape[1] // first.shape[1]
        yield _passing(
            _fit(replace(stream, labels=first.repeat_interleave(groups, 1)), op.out.shape),
            WEIGHTED_SUM,
        )


def _copy(op: Operation) -> Iterator[Stream]:
    for stream in op.known.read(op.args[1]):
        yield _fit(stream, op.out.shape)


def _forget(op: Operation) -> Iterator[Stream]:
    yield from ()


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ACTIVATIONS, _activation),
    **dict.fromkeys(SOFTMAXES, _softmax),
    **dict.fromkeys(_STATISTICS, _statistic),
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_LOOKUPS, _lookup),
    **dict.fromkeys(_WRITES, _write),
    **dict.fromkeys(_SORTS, _sorted),
    **dict.fromkeys(_CHOICES, _choice),
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(_MATMULS, _product),
    **dict.fromkeys(("where", "masked_fill"), _select),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    **dict.fromkeys(("div", "divide", "true_divide"), _divide),
    **dict.fromkeys(
        ("native_layer_norm", "native_group_norm", "_fused_rms_norm", "native_batch_norm"), _norm
    ),
    **dict.fromkeys(
        ("fill", "zero", "zeros_like", "ones_like", "full_like", "empty_like"), _forget
    ),
    **dict.fromkeys(
        ("new_zeros", "new_empty", "new_ones", "new_full", "normal", "uniform"), _forget
    ),
    "mul": _multiply,
    "mean": _mean,
    "pow": _power,
    "glu": _glu,
    "convolution": _convolution,
    "copy": _copy,
    "_assert_async": _forget,
    "embedding": _forget,
}
