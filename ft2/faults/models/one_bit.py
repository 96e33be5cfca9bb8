"""One bit, any (FT2, section 2.2: 1-bit)."""

from ft2.faults.draw import Draw
from ft2.faults.formats import NumberFormat

__all__ = ["one_bit"]


def one_bit(encoding: NumberFormat, draw: Draw) -> tuple[int, ...]:
    """Choose one bit of the format, each equally likely."""
    return (draw.below(encoding.width),)
