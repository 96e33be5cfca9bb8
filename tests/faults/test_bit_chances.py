"""How likely a fault model draws which bits."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest

from ft2.faults import (
    FAULT_MODELS,
    FORMATS,
    Draw,
    NumberFormat,
    bit_chances,
    fault_model,
    flips_top_bit,
)


@pytest.mark.parametrize("encoding", FORMATS.values(), ids=lambda each: each.name)
@pytest.mark.parametrize("name", FAULT_MODELS)
def test_chances_add_up_to_one_and_are_those_of_the_bits(name: str, encoding: NumberFormat) -> None:
    chances = bit_chances(fault_model(name), encoding)
    assert sum(chances.values()) == 1
    width = encoding.width
    expected = {
        "1-bit": {(bit,): Fraction(1, width) for bit in range(width)},
        "2-bit": {
            (low, high): Fraction(2, width * (width - 1))
            for high in range(width)
            for low in range(high)
        },
        "exp": {(bit,): Fraction(1, encoding.exponent_bits) for bit in encoding.exponent},
    }
    assert expected.keys() == FAULT_MODELS.keys()
    assert chances == expected[name]


def test_chances_of_unequal_ways_are_exact() -> None:
    def lopsided(encoding: NumberFormat, draw: Draw) -> tuple[int, ...]:
        return (0,) if draw.below(3) else (draw.below(2), encoding.width - 1)

    expected = {(0,): Fraction(2, 3), (0, 15): Fraction(1, 6), (1, 15): Fraction(1, 6)}
    assert bit_chances(lopsided, FORMATS["fp16"]) == expected
    assert bit_chances(lambda encoding, draw: (3,), FORMATS["fp16"]) == {(3,): 1}


@pytest.mark.parametrize("name", FAULT_MODELS)
def test_bits_are_drawn_as_often_as_their_chances_say(name: str) -> None:
    model, encoding, trials = fault_model(name), FORMATS["fp8-e4m3"], 6000
    drawn = Counter(model(encoding, Draw(0, "", trial)) for trial in range(trials))
    chances = bit_chances(model, encoding)
    assert drawn.keys() == chances.keys()
    for bits, chance in chances.items():
        assert abs(drawn[bits] - trials * chance) < 5 * math.sqrt(trials * chance)


@pytest.mark.parametrize("encoding", FORMATS.values(), ids=lambda each: each.name)
def test_the_highest_exponent_bit_is_below_the_sign(encoding: NumberFormat) -> None:
    top = encoding.width - 2
    assert [bit for bit in range(encoding.width) if flips_top_bit((bit,), encoding)] == [top]
    assert flips_top_bit((0, top), encoding)
    assert not flips_top_bit((0, top + 1), encoding)
