"""How much a flip changes a value, as its exponent tells."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ft2.faults import FORMATS, NumberFormat, change_sizes, exponents, flip, pattern

_ALL = list(FORMATS.values())


def _numbers(patterns: list[int], encoding: NumberFormat) -> Tensor:
    size = encoding.width // 8
    raw = b"".join((each % 2**encoding.width).to_bytes(size, "little") for each in patterns)
    return torch.frombuffer(bytearray(raw), dtype=encoding.dtype)


def _real_size(value: Tensor, bits: tuple[int, ...], encoding: NumberFormat) -> int:
    change = abs(flip(value, bits, encoding).double().item() - value.double().item())
    return min(max(math.frexp(change)[1], -20), 20) if math.isfinite(change) else 20


@given(st.sampled_from(_ALL), st.integers(0, 2**64 - 1), st.data())
def test_one_bit_changes_a_value_as_much_as_its_exponent_says(
    encoding: NumberFormat, bits: int, data: st.DataObject
) -> None:
    (value,) = _numbers([bits], encoding)
    exponent = int(exponents(value, encoding))
    bit = data.draw(st.integers(0, encoding.width - 1))
    size = change_sizes((bit,), encoding)[exponent]
    real = _real_size(value, (bit,), encoding)
    normal = 0 < exponent < (1 << encoding.exponent_bits) - 1
    if bit < encoding.mantissa_bits:
        # Its step is the same for all values of an exponent; in e4m3 one of the largest is NaN.
        is_number = value.double().isfinite() and flip(value, (bit,), encoding).double().isfinite()
        assert size == real or not is_number
    elif normal and exponent != 1 << (bit - encoding.mantissa_bits):
        assert abs(size - real) <= 1 or not flip(value, (bit,), encoding).double().isfinite()


@given(st.sampled_from(_ALL), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 63), min_size=1))
def test_a_sign_does_not_change_the_size_and_the_order_of_bits_neither(
    encoding: NumberFormat, pattern_: int, numbers: list[int]
) -> None:
    bits = sorted({number % encoding.width for number in numbers})
    value, negative = _numbers([pattern_, pattern_ ^ (1 << (encoding.width - 1))], encoding)
    exponent = int(exponents(value, encoding))
    assert int(exponents(negative, encoding)) == exponent
    assert change_sizes(tuple(bits), encoding) == change_sizes(tuple(bits[::-1]), encoding)


@pytest.mark.parametrize("encoding", _ALL, ids=lambda each: each.name)
def test_sizes_are_those_of_the_value_that_stands_for_an_exponent(encoding: NumberFormat) -> None:
    fields = range(1 << encoding.exponent_bits)
    half = 1 << (encoding.mantissa_bits - 1)
    values = _numbers([field << encoding.mantissa_bits | half for field in fields], encoding)
    smallest = 2.0 ** (2 - (1 << (encoding.exponent_bits - 1)))
    assert values[0].double().item() == smallest / 2
    assert values[1].double().item() == smallest * 1.5
    for bits in [(0,), (encoding.width - 1,), (encoding.width - 2,), (1, encoding.width - 3)]:
        expected = tuple(_real_size(value, bits, encoding) for value in values)
        assert change_sizes(bits, encoding) == expected


def test_sizes_of_known_changes() -> None:
    fp16 = FORMATS["fp16"]
    # 1.5 becomes NaN, and 1.5 · 2⁻¹⁴ becomes 6, which is 4 and more but below 8.
    assert change_sizes((14,), fp16)[15] == 20
    assert change_sizes((14,), fp16)[1] == 3
    # The lowest bit of a number from 1 to 2 is worth 2⁻¹⁰.
    assert change_sizes((0,), fp16)[15] == -9
    assert change_sizes((15,), fp16)[15] == 2
    # The largest exponent of e4m3 has numbers: 384 is 256 without its mantissa's highest bit.
    e4m3 = FORMATS["fp8-e4m3"]
    assert change_sizes((2,), e4m3)[15] == 8
    assert change_sizes((9,), fp16)[31] == 20
    with pytest.raises(ValueError, match="not all bits of fp16"):
        change_sizes((16,), fp16)[15]


@given(st.sampled_from(_ALL), st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_exponents_are_fields_of_the_patterns(encoding: NumberFormat, bits: list[int]) -> None:
    values = _numbers(bits, encoding)
    found = exponents(values, encoding)
    assert found.dtype == torch.int64
    expected = [
        pattern(value, encoding) >> encoding.mantissa_bits & ((1 << encoding.exponent_bits) - 1)
        for value in values
    ]
    assert found.tolist() == expected


@given(st.sampled_from(_ALL), st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_values_of_another_dtype_are_converted(
    encoding: NumberFormat, numbers: list[float]
) -> None:
    values = torch.tensor(numbers)
    converted = values.to(encoding.dtype)
    assert torch.equal(exponents(values, encoding), exponents(converted, encoding))
    assert exponents(values.reshape(1, -1, 1), encoding).shape == (1, len(numbers), 1)
    assert torch.equal(exponents(values.requires_grad_(), encoding), exponents(converted, encoding))
