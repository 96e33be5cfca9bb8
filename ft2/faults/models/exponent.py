"""One bit of the exponent (FT2, section 2.2: EXP)."""

from ft2.faults.draw import Draw
from ft2.faults.formats import NumberFormat

__all__ = ["exponent"]


def exponent(encoding: NumberFormat, draw: Draw) -> tuple[int, ...]:
    """Choose one bit of the format's exponent, each equally likely."""
    return (encoding.exponent[draw.below(encoding.exponent_bits)],)
