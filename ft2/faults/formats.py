"""Number formats, and flipping the bits of one number in one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FORMATS", "NumberFormat", "check_bits", "flip", "format_of", "number_format", "pattern"]


@dataclass(frozen=True)
class NumberFormat:
    """A floating-point format: one sign bit, then exponent bits, then mantissa bits.

    Bits are numbered from the least significant, 0, to the sign, ``width - 1``.
    """

    name: str
    dtype: torch.dtype
    pattern_dtype: torch.dtype
    exponent_bits: int
    mantissa_bits: int

    @property
    def width(self) -> int:
        """The number of bits."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def exponent(self) -> range:
        """The numbers of the exponent's bits."""
        return range(self.mantissa_bits, self.mantissa_bits + self.exponent_bits)

    def holds(self, other: NumberFormat) -> bool:
        """Whether every number of `other` is a number of this format."""
        return (
            self.exponent_bits >= other.exponent_bits and self.mantissa_bits >= other.mantissa_bits
        )


FORMATS: dict[str, NumberFormat] = {
    entry.name: entry
    for entry in (
        NumberFormat("fp16", torch.float16, torch.int16, 5, 10),
        NumberFormat("bf16", torch.bfloat16, torch.int16, 8, 7),
        NumberFormat("fp32", torch.float32, torch.int32, 8, 23),
        NumberFormat("fp64", torch.float64, torch.int64, 11, 52),
        NumberFormat("fp8-e4m3", torch.float8_e4m3fn, torch.uint8, 4, 3),
        NumberFormat("fp8-e5m2", torch.float8_e5m2, torch.uint8, 5, 2),
    )
}
_BY_DTYPE = {entry.dtype: entry for entry in FORMATS.values()}


def number_format(name: str) -> NumberFormat:
    """Return the format called `name`.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(
            f"unknown number format {name!r}: use one of {', '.join(FORMATS)}"
        ) from None


def format_of(dtype: torch.dtype) -> NumberFormat:
    """Return the format of a tensor's dtype.

    Raises
    ------
    ValueError
        If bits of that dtype cannot be flipped.
    """
    try:
        return _BY_DTYPE[dtype]
    except KeyError:
        raise ValueError(
            f"ft2 cannot flip bits of {dtype}: it knows {', '.join(FORMATS)}"
        ) from None


def check_bits(bits: Sequence[int], encoding: NumberFormat) -> None:
    """Check that a format has these bits.

    Raises
    ------
    ValueError
        If it does not.
    """
    if not all(0 <= bit < encoding.width for bit in bits):
        raise ValueError(
            f"bits {list(bits)} are not all bits of {encoding.name}: use 0 to {encoding.width - 1}"
        )


def flip(value: Tensor, bits: Sequence[int], encoding: NumberFormat) -> Tensor:
    """Flip bits of a number, on the device it is on and without waiting for it.

    Parameters
    ----------
    value:
        The number, of any floating-point dtype; of several, each is flipped.
    bits:
        Numbers of the bits to flip, 0 the least significant.
    encoding:
        The format whose bits are flipped. A value of another dtype is converted to it, flipped,
        and converted back.

    Returns
    -------
    Tensor
        A new tensor of the shape and dtype of `value`.

    Raises
    ------
    ValueError
        If a bit is not one of the format's, or the value's dtype does not hold every number of the
        format, so that converting back could undo the flip.
    """
    check_bits(bits, encoding)
    own = format_of(value.dtype)
    if not own.holds(encoding):
        raise ValueError(
            f"encoding {encoding.name} cannot be tested on a layer that computes in {own.name}, "
            f"which does not hold all its numbers: leave the encoding out or use {own.name}"
        )
    mask = sum(1 << bit for bit in bits)
    if encoding.pattern_dtype.is_signed and mask >> (encoding.width - 1):
        mask -= 1 << encoding.width
    flipped = value.to(encoding.dtype).view(encoding.pattern_dtype) ^ mask
    return flipped.view(encoding.dtype).to(value.dtype)


def pattern(value: Tensor, encoding: NumberFormat) -> int:
    """Return the bits of one number in `encoding`, as a non-negative integer."""
    bits = value.to(encoding.dtype).reshape(1).view(encoding.pattern_dtype).item()
    return int(bits) & ((1 << encoding.width) - 1)
