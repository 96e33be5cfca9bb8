"""How much a fault changes a value: known before it strikes, from the bits and the exponent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ft2.faults.formats import NumberFormat, flip

__all__ = ["change_sizes", "exponents", "flips_top_bit"]

# Powers of two beyond which changes are not told apart.
_SMALLEST, _LARGEST = -20, 20


def flips_top_bit(bits: Sequence[int], encoding: NumberFormat) -> bool:
    """Whether the highest bit of the exponent is among `bits`.

    It changes a value most: those of fp16 below 2 by a factor of up to 2¹⁶, where a mantissa's bit
    changes none by more than a half.
    """
    return encoding.exponent[-1] in bits


def exponents(values: Tensor, encoding: NumberFormat) -> Tensor:
    """Return the exponent fields of values, as the format stores them.

    Parameters
    ----------
    values:
        Numbers of any floating-point dtype, of any shape, on any device.
    encoding:
        The format; values of another dtype are converted to it.

    Returns
    -------
    Tensor
        int64, of the shape of `values` and on their device: 0 for zero and subnormals.
    """
    stored = values.detach().to(encoding.dtype).view(encoding.pattern_dtype)
    fields = (stored >> encoding.mantissa_bits) & ((1 << encoding.exponent_bits) - 1)
    return fields.to(torch.int64)


@lru_cache(maxsize=8192)
def change_sizes(bits: tuple[int, ...], encoding: NumberFormat) -> tuple[int, ...]:
    """Return the power of two up to which a flip changes a value, for each exponent field.

    One value stands for all of an exponent, whatever their sign: that with the mantissa 1.5, and
    for zero and subnormals half of the smallest normal number. A mantissa's bit changes all of an
    exponent alike; any other, from normal numbers to normal numbers, alike to within a third.

    Parameters
    ----------
    bits:
        Numbers of the flipped bits, 0 the least significant.
    encoding:
        The format.

    Returns
    -------
    tuple of int
        By exponent field, as of :func:`exponents`. From -20 to 20: smaller and larger powers are
        not told apart. 20 also where the value or what becomes of it is not finite.

    Raises
    ------
    ValueError
        If a bit is not one of the format's.
    """
    fields = torch.arange(1 << encoding.exponent_bits, device="cpu")
    # The highest bit of the mantissa makes 1.5 of a normal number, and half of the smallest.
    patterns = (fields << encoding.mantissa_bits) | (1 << (encoding.mantissa_bits - 1))
    before = patterns.to(encoding.pattern_dtype).view(encoding.dtype)
    change = (flip(before, bits, encoding).double() - before.double()).abs()
    sizes = torch.frexp(change).exponent.clamp(_SMALLEST, _LARGEST)
    sizes[change == 0] = _SMALLEST
    sizes[~change.isfinite()] = _LARGEST
    return tuple(sizes.tolist())
