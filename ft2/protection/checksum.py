"""The checksum test of linear layers in plain torch, and the sums of weights that it needs.

The sum over a projection's columns equals the inputs times the sum of the weight's rows (Huang and
Abraham, 1984); csrc/checksum.h says how far rounding sets them apart.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ft2.forward import Vectors
from ft2.forward.disguise import undisguised
from ft2.protection.resident import keep_address

__all__ = [
    "NARROW",
    "differing_products",
    "differing_sums",
    "roundoffs_of",
    "summed_parameter",
    "summed_weight",
    "sums_of",
    "why_no_checksum",
    "why_not_summed",
]

# csrc/checksum.h: fp32 outputs carry the rounding of their accumulation too.
_ROUNDOFFS = {torch.float16: 8.0, torch.bfloat16: 8.0, torch.float32: 64.0}
# So few columns may all but cancel out, and their norm tells nothing of their rounding.
NARROW = 8
# Roundings of fp32 in a sum over the inputs, in which all types are accumulated.
_ACCUMULATION = 16 * 2.0**-24

# fp32 products whose factors are rounded to 11 bits (TF32) or 8 bits (bf16), in fp32's roundoffs.
_ROUNDOFFS_OF_FACTORS = {"cuda": 8.0 * 2**13, "cpu": 8.0 * 2**16}


def why_no_checksum(module: nn.Module) -> str | None:
    """Return why a module's outputs have no checksum, in a few words, or None if they have."""
    kind = undisguised(type(module))
    forward = getattr(kind, "forward", None)
    is_known = forward is nn.Linear.forward or forward is Conv1D.forward
    if not isinstance(module, nn.Linear) and not is_known:
        return f"it is a {kind.__name__}, not a linear layer"
    why_not = why_not_summed(module.weight)
    if why_not is not None:
        return why_not
    if (not is_known or "forward" in vars(module)) and not _multiplies(module):
        return f"its forward computes something else than a {kind.__name__}'s product"
    return None


def why_not_summed(weight: Any) -> str | None:
    """Return why a weight cannot be summed, in a few words, or None if it can."""
    if type(weight) not in (Tensor, nn.Parameter) or type(weight.data) is not Tensor:
        return f"its weight is a {type(weight).__name__}, not a plain tensor"
    if weight.is_meta:
        return "its weight is elsewhere until it runs"
    if weight.dtype not in _ROUNDOFFS:
        return f"checksums are for fp16, bf16 and fp32 layers, not {weight.dtype}"
    return None


def roundoffs_of(weight: Tensor) -> float:
    """Return how many unit roundoffs of its norm a sum may be off, as arithmetic is set."""
    if weight.dtype not in _ROUNDOFFS:
        raise ValueError(f"checksums are for fp16, bf16 and fp32 layers, not {weight.dtype}")
    device = weight.device.type
    if weight.dtype is torch.float32 and device in _ROUNDOFFS_OF_FACTORS:
        precision = torch.get_float32_matmul_precision()
        # A CPU rounds the factors in "medium" only, and some only.
        if precision == "medium" or (device == "cuda" and precision != "highest"):
            return _ROUNDOFFS_OF_FACTORS[device]
    return _ROUNDOFFS[weight.dtype]


@torch.no_grad()
def summed_weight(module: nn.Module, group: int = 0) -> Tensor:
    """Return fp32 (groups, inputs + 1): the weight's and, last, the bias's sum over each group.

    Sums are taken in fp64 and rounded once, so that they add no error of their own.

    Parameters
    ----------
    module:
        A linear layer, or transformers' ``Conv1D``.
    group:
        How many columns are summed at a time; all, unless it divides them.
    """
    weight: Any = module.weight
    matrix = weight.t() if isinstance(module, Conv1D) else weight
    columns, inputs = matrix.shape
    groups = columns // group if group and columns % group == 0 else 1
    sums = weight.new_empty((groups, inputs + 1), dtype=torch.float32)
    for at, part in enumerate(matrix.chunk(groups)):
        sums[at, :-1] = part.sum(0, dtype=torch.float64)
    bias: Any = module.bias
    sums[:, -1] = 0 if bias is None else bias.view(groups, -1).sum(1, dtype=torch.float64)
    return sums


# Summing the weights of a large model takes longer than a step: once, not for each protection.
_SUMS: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, Tensor]]] = WeakKeyDictionary()


def sums_of(module: nn.Module, group: int) -> Tensor:
    """Return :func:`summed_weight`, computed again only if the weight or bias is another one.

    What writes past autograd, to a weight's ``.data``, leaves no trace.
    """
    known = _SUMS.setdefault(module, {})
    identity = _identity(module)
    if group not in known or known[group][0] != identity:
        with torch.inference_mode(False):
            sums = summed_weight(module, group)
        keep_address(sums)
        known[group] = (identity, sums)
    return known[group][1]


@torch.no_grad()
def summed_parameter(parameter: Tensor, inputs: int, outputs: int, by_column: bool) -> Tensor:
    """Return fp32 (matrices, inputs): the sums of a raw parameter's matrices over their outputs.

    Parameters
    ----------
    parameter:
        One matrix or several, one behind the other.
    inputs, outputs:
        Their sizes.
    by_column:
        Whether the outputs are the last dimension of each.
    """
    sizes = (inputs, outputs) if by_column else (outputs, inputs)
    matrices = parameter.reshape(-1, *sizes)
    sums = parameter.new_empty((len(matrices), inputs), dtype=torch.float32)
    for at, matrix in enumerate(matrices):
        sums[at] = matrix.sum(1 if by_column else 0, dtype=torch.float64)
    return sums


@torch.no_grad()
def differing_products(vectors: Vectors, sums: Tensor, roundoffs: float) -> Tensor:
    """Return bool (vectors,): as :func:`differing_sums`, each vector with sums of its own.

    Parameters
    ----------
    vectors:
        A product's, with its inputs.
    sums:
        (vectors, inputs), or (1, inputs).
    roundoffs:
        As :func:`roundoffs_of` returns them.
    """
    assert vectors.inputs is not None
    numbers = vectors.values.double()
    expected = (vectors.inputs.double() * sums).sum(-1)
    if vectors.bias is not None:
        expected = expected + vectors.bias.sum(dtype=torch.float64)
    squares = numbers.square().sum(-1)
    tolerance = roundoffs * torch.finfo(vectors.values.dtype).eps / 2 * squares.sqrt()
    if numbers.shape[-1] < NARROW:
        size = vectors.inputs.float().norm(dim=1) * sums.norm(dim=1)
        tolerance = tolerance + _ACCUMULATION * size
    agree = (numbers.sum(-1) - expected).abs() <= tolerance
    return ~(agree & squares.isfinite())


def differing_sums(output: Tensor, hidden: Tensor, sums: Tensor, roundoffs: float) -> Tensor:
    """Return bool (vectors, groups): where the columns do not add up to what they should.

    As the native ``check_products`` has it; fewer than ``NARROW`` columns may be further off, by
    the rounding of a sum over as large inputs.

    Parameters
    ----------
    output, hidden:
        What a layer computed, and what from: (..., columns) and (..., inputs).
    sums:
        As :func:`summed_weight` returns them.
    roundoffs:
        As :func:`roundoffs_of` returns them.
    """
    values = output.reshape(-1, sums.shape[0], output.shape[-1] // sums.shape[0]).double()
    expected = hidden.reshape(-1, hidden.shape[-1]).float() @ sums[:, :-1].T + sums[:, -1]
    squares = values.square().sum(-1)
    tolerance = roundoffs * torch.finfo(output.dtype).eps / 2 * squares.sqrt()
    if values.shape[-1] < NARROW:
        size = hidden.reshape(-1, hidden.shape[-1]).float().norm(dim=1)
        tolerance = tolerance + _ACCUMULATION * size[:, None] * sums[:, :-1].norm(dim=1)
    agree = (values.sum(-1) - expected).abs() <= tolerance
    return ~(agree & squares.isfinite())


@torch.no_grad()
def _multiplies(module: nn.Module) -> bool:
    """Whether a forward of its own computes the product all the same, as far as one vector shows.

    If it does not, all that it computes is flagged, so nothing goes unprotected by it.
    """
    weight: Any = module.weight
    inputs = weight.shape[1]
    numbers = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 1, inputs, generator=numbers).to(weight)
    try:
        output = module.forward(hidden)
    except Exception:
        return False
    if not isinstance(output, Tensor) or output.shape != (1, 1, weight.shape[0]):
        return False
    return not differing_sums(output, hidden, sums_of(module, 0), roundoffs_of(weight)).any()


def _identity(module: nn.Module) -> tuple[Any, ...]:
    """What changes when a weight or bias does."""
    parts: tuple[Any, ...] = (module.weight, module.bias)
    return tuple(
        # What was made in inference mode counts no versions.
        None
        if part is None
        else (id(part), part.data_ptr(), 0 if part.is_inference() else part._version)
        for part in parts
    )
