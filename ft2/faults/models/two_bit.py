"""Two distinct bits of one value (FT2, section 2.2: 2-bit)."""

from ft2.faults.draw import Draw
from ft2.faults.formats import NumberFormat

__all__ = ["two_bit"]


def two_bit(encoding: NumberFormat, draw: Draw) -> tuple[int, ...]:
    """Choose two distinct bits of the format, each pair equally likely."""
    first = draw.below(encoding.width)
    second = draw.below(encoding.width - 1)
    second += second >= first
    return (min(first, second), max(first, second))
