"""Two strata of faults: those that flip the highest bit of the exponent, and all others.

The first change a value most: those of fp16 below 2 by a factor of up to 2¹⁶, where a mantissa's
bit changes none by more than a half. So most SDCs are theirs.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from ft2.faults.draw import Draw
from ft2.faults.fault import Fault
from ft2.faults.formats import NumberFormat, number_format
from ft2.faults.models import FaultModel
from ft2.faults.space import Space

__all__ = ["OTHER_BITS", "TOP_BIT", "sample_top_bit", "stratum_of", "top_bit_weight"]

TOP_BIT = "top-exponent-bit"
OTHER_BITS = "other-bits"


def stratum_of(fault: Fault) -> str:
    """Return the stratum that a fault with a known encoding belongs to."""
    assert fault.encoding is not None
    return _stratum(fault.bits, number_format(fault.encoding))


def top_bit_weight(space: Space, model: FaultModel, encoding: str | None) -> Fraction:
    """Return the share of the faults that flip the highest exponent bit.

    It is the same in each element of the space, and so under each measure of it.

    Parameters
    ----------
    space, model, encoding:
        As in :meth:`ft2.faults.Space.sample`.

    Raises
    ------
    ValueError
        If layers compute in several formats and `encoding` does not name one, or the fault model
        flips that bit always or never.
    """
    formats = space.encodings if encoding is None else {encoding}
    if len(formats) != 1:
        raise ValueError(
            f"stratified sampling needs one number format, but the layers compute in "
            f"{', '.join(sorted(formats)) or 'none'}: name one with --ft2-encoding"
        )
    (name,) = formats
    chosen = number_format(name)
    weight = _weight(model, chosen)
    if not 0 < weight < 1:
        raise ValueError(
            f"stratified sampling needs a fault model that flips the highest exponent bit of "
            f"{chosen.name} in some faults and not in others"
        )
    return weight


def sample_top_bit(space: Space, draw: Draw, model: FaultModel, encoding: str | None) -> Fault:
    """Draw one fault, uniformly among those that flip the highest exponent bit.

    Parameters
    ----------
    space, draw, model, encoding:
        As in :meth:`ft2.faults.Space.sample`.

    Raises
    ------
    EmptySpaceError, ValueError
        As :meth:`ft2.faults.Space.sample` and :func:`top_bit_weight` do.
    """
    top_bit_weight(space, model, encoding)

    def with_top_bit(chosen: NumberFormat, numbers: Draw) -> tuple[int, ...]:
        while True:
            bits = model(chosen, numbers)
            if _stratum(bits, chosen) == TOP_BIT:
                return bits

    return space.sample(draw, with_top_bit, encoding)


def _stratum(bits: tuple[int, ...], encoding: NumberFormat) -> str:
    return TOP_BIT if encoding.exponent[-1] in bits else OTHER_BITS


class _Script(Draw):
    """Numbers that are given, then zeros; notes below what bound the first of those was drawn."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        super().__init__(0, "", 0)
        self._numbers = iter(numbers)
        self.next_bound: int | None = None

    def below(self, bound: int) -> int:
        number = next(self._numbers, None)
        if number is None:
            self.next_bound = self.next_bound or bound
            return 0
        return number


@lru_cache(maxsize=64)
def _weight(model: FaultModel, encoding: NumberFormat) -> Fraction:
    return _chance(model, encoding, ())


def _chance(model: FaultModel, encoding: NumberFormat, drawn: tuple[int, ...]) -> Fraction:
    """Return the exact chance of the top bit, given the first numbers that the model draws."""
    script = _Script(drawn)
    bits = model(encoding, script)
    bound = script.next_bound
    if bound is None:
        return Fraction(_stratum(bits, encoding) == TOP_BIT)
    chances = (_chance(model, encoding, (*drawn, number)) for number in range(bound))
    return sum(chances, Fraction(0)) / bound
