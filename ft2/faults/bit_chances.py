"""How likely a fault model draws which bits: exactly, from the numbers that it asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache

from ft2.faults.draw import Draw
from ft2.faults.formats import NumberFormat
from ft2.faults.models import FaultModel

__all__ = ["bit_chances"]


@lru_cache(maxsize=64)
def bit_chances(model: FaultModel, encoding: NumberFormat) -> Mapping[tuple[int, ...], Fraction]:
    """Return the chance of each set of bits that a fault model draws; they add up to 1.

    It is the same in each element of the space, and so under each measure of it. Remembered: it
    must not be changed.

    Parameters
    ----------
    model:
        Chooses the bits.
    encoding:
        The format whose bits they are.
    """
    # Few bounds are drawn below, but many numbers: whole ones add up faster than fractions.
    ways: dict[int, Counter[tuple[int, ...]]] = {}
    for bits, outcomes in _drawn(model, encoding, (), 1):
        ways.setdefault(outcomes, Counter())[bits] += 1
    chances: dict[tuple[int, ...], Fraction] = {}
    for outcomes, counts in ways.items():
        for bits, count in counts.items():
            chances[bits] = chances.get(bits, Fraction(0)) + Fraction(count, outcomes)
    return chances


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


def _drawn(
    model: FaultModel, encoding: NumberFormat, numbers: tuple[int, ...], outcomes: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the bits for all numbers that may follow the given ones, each 1 in how many."""
    script = _Script(numbers)
    bits = model(encoding, script)
    bound = script.next_bound
    if bound is None:
        yield bits, outcomes
        return
    for number in range(bound):
        yield from _drawn(model, encoding, (*numbers, number), outcomes * bound)
