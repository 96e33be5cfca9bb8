"""Number formats, and flips compared with the bytes that numpy and struct see."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ft2.faults import FORMATS, NumberFormat, flip, format_of, number_format, pattern

_ALL = list(FORMATS.values())
_SMALL = [each for each in _ALL if each.width <= 16]
_PATTERNS = st.integers(0, 2**64 - 1)


def _number(bits: int, encoding: NumberFormat) -> torch.Tensor:
    """The number of that bit pattern, shape ()."""
    raw = bits.to_bytes(encoding.width // 8, "little")
    return torch.frombuffer(bytearray(raw), dtype=encoding.dtype)[0]


@pytest.mark.parametrize("encoding", _ALL, ids=lambda each: each.name)
def test_a_format_has_the_widths_of_its_dtype(encoding: NumberFormat) -> None:
    assert encoding.width == 8 * encoding.dtype.itemsize == 8 * encoding.pattern_dtype.itemsize
    assert list(encoding.exponent) == list(range(encoding.mantissa_bits, encoding.width - 1))
    assert format_of(encoding.dtype) is number_format(encoding.name) is encoding
    # One's exponent is the bias: its pattern has all exponent bits but the topmost.
    one = pattern(torch.tensor(1.0), encoding)
    assert one == ((1 << (encoding.exponent_bits - 1)) - 1) << encoding.mantissa_bits
    assert pattern(torch.tensor(-1.0), encoding) == one | 1 << (encoding.width - 1)


@pytest.mark.parametrize("encoding", _SMALL, ids=lambda each: each.name)
def test_every_bit_of_every_pattern_of_a_small_format_is_flipped_alone_and_back(
    encoding: NumberFormat,
) -> None:
    mask_type = torch.int32
    unsigned = torch.arange(1 << encoding.width, dtype=mask_type)
    everything = unsigned.to(encoding.pattern_dtype).view(encoding.dtype)
    for bit in range(encoding.width):
        once = flip(everything, [bit], encoding)
        found = once.view(encoding.pattern_dtype).to(mask_type) & ((1 << encoding.width) - 1)
        assert torch.equal(found, unsigned ^ (1 << bit))
        back = flip(once, [bit], encoding).view(encoding.pattern_dtype)
        assert torch.equal(back, everything.view(encoding.pattern_dtype))


@given(st.sampled_from(_ALL), _PATTERNS, st.data())
def test_flipping_twice_is_no_flip(encoding: NumberFormat, bits: int, data: st.DataObject) -> None:
    value = _number(bits % 2**encoding.width, encoding)
    chosen = data.draw(
        st.lists(st.integers(0, encoding.width - 1), min_size=1, max_size=3, unique=True)
    )
    once = flip(value, chosen, encoding)
    assert pattern(once, encoding) == pattern(value, encoding) ^ sum(1 << bit for bit in chosen)
    assert pattern(flip(once, chosen, encoding), encoding) == pattern(value, encoding)
    assert (once.dtype, once.shape) == (value.dtype, torch.Size([]))


@given(_PATTERNS, st.integers(0, 63))
def test_a_flip_of_a_double_is_what_struct_computes(bits: int, bit: int) -> None:
    flipped = flip(_number(bits, FORMATS["fp64"]), [bit], FORMATS["fp64"])
    assert struct.pack("<d", flipped.item()) == (bits ^ 1 << bit).to_bytes(8, "little")


@given(st.integers(0, 2**32 - 1), st.integers(0, 31))
def test_a_flip_of_a_single_is_what_numpy_computes(bits: int, bit: int) -> None:
    flipped = flip(_number(bits, FORMATS["fp32"]), [bit], FORMATS["fp32"])
    assert flipped.reshape(1).numpy().view(np.uint32)[0] == bits ^ 1 << bit


@pytest.mark.parametrize(
    ("encoding", "bit", "before", "after"),
    [
        ("fp16", 15, 1.5, -1.5),
        ("fp16", 14, 1.5, float("nan")),
        ("fp16", 14, 0.5, 32768.0),
        ("fp16", 0, 1.0, 1.0009765625),
        ("bf16", 14, 0.5, 1.7014118346046923e38),
        ("bf16", 7, 1.0, 0.5),
        ("fp32", 30, 1.0, float("inf")),
        ("fp64", 62, 1.0, float("inf")),
        ("fp8-e4m3", 7, 448.0, -448.0),
        ("fp8-e4m3", 6, 1.0, 256.0),
        ("fp8-e4m3", 0, 448.0, float("nan")),
        ("fp8-e5m2", 6, 1.0, float("inf")),
        ("fp8-e5m2", 2, 1.0, 0.5),
        ("fp8-e5m2", 1, 1.0, 1.5),
    ],
)
def test_known_flips(encoding: str, bit: int, before: float, after: float) -> None:
    found = flip(
        torch.tensor(before, dtype=FORMATS[encoding].dtype), [bit], number_format(encoding)
    ).item()
    assert found == pytest.approx(after, nan_ok=True, rel=0, abs=0)


def test_a_flip_leaves_the_value_it_was_given() -> None:
    value = torch.tensor(1.0)
    assert flip(value, [31], FORMATS["fp32"]).item() == -1
    assert value.item() == 1


@given(
    st.sampled_from(["fp16", "bf16", "fp8-e4m3", "fp8-e5m2"]),
    st.floats(-400, 400, width=32),
    st.data(),
)
def test_a_narrower_encoding_rounds_then_flips(
    name: str, number: float, data: st.DataObject
) -> None:
    encoding = FORMATS[name]
    bit = data.draw(st.integers(0, encoding.width - 1))
    value = torch.tensor(number, dtype=torch.float32)
    flipped = flip(value, [bit], encoding)
    assert flipped.dtype == torch.float32
    expected = _number(pattern(value, encoding) ^ 1 << bit, encoding)
    assert torch.equal(flipped.nan_to_num(7), expected.float().nan_to_num(7))


@given(st.floats(-60000, 60000, width=32), st.integers(0, 15))
def test_half_precision_in_a_single_is_what_numpy_computes(number: float, bit: int) -> None:
    half = np.array([number], np.float32).astype(np.float16)
    expected = (half.view(np.uint16) ^ np.uint16(1 << bit)).view(np.float16).astype(np.float32)
    found = flip(torch.tensor(number, dtype=torch.float32), [bit], FORMATS["fp16"])
    np.testing.assert_array_equal(found.reshape(1).numpy(), expected)


def test_a_format_holds_itself_and_what_is_narrower_in_both_parts() -> None:
    held = {each.name: [other.name for other in _ALL if each.holds(other)] for each in _ALL}
    assert held == {
        "fp16": ["fp16", "fp8-e4m3", "fp8-e5m2"],
        "bf16": ["bf16", "fp8-e4m3", "fp8-e5m2"],
        "fp32": ["fp16", "bf16", "fp32", "fp8-e4m3", "fp8-e5m2"],
        "fp64": list(FORMATS),
        "fp8-e4m3": ["fp8-e4m3"],
        "fp8-e5m2": ["fp8-e5m2"],
    }


@pytest.mark.parametrize("holder", _ALL, ids=lambda each: each.name)
@pytest.mark.parametrize("held", _SMALL, ids=lambda each: each.name)
def test_a_held_format_survives_the_conversion_there_and_back(
    holder: NumberFormat, held: NumberFormat
) -> None:
    if not holder.holds(held):
        return
    everything = torch.arange(1 << held.width).to(held.pattern_dtype).view(held.dtype)
    back = everything.to(holder.dtype).to(held.dtype)
    numbers = ~everything.float().isnan()
    assert torch.equal(
        back.view(held.pattern_dtype)[numbers], everything.view(held.pattern_dtype)[numbers]
    )
    assert back.float()[~numbers].isnan().all()


@pytest.mark.parametrize(
    ("dtype", "encoding"),
    [(torch.float16, "fp32"), (torch.float16, "bf16"), (torch.bfloat16, "fp16")],
)
def test_an_encoding_that_the_dtype_cannot_hold_is_refused(
    dtype: torch.dtype, encoding: str
) -> None:
    with pytest.raises(ValueError, match=f"encoding {encoding} cannot be tested on a layer"):
        flip(torch.tensor(1.0, dtype=dtype), [0], FORMATS[encoding])


@pytest.mark.parametrize("bits", [[16], [-1], [0, 99]])
def test_a_bit_that_the_format_lacks_is_refused(bits: list[int]) -> None:
    with pytest.raises(ValueError, match="not all bits of fp16: use 0 to 15"):
        flip(torch.tensor(1.0), bits, FORMATS["fp16"])


def test_a_dtype_without_a_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot flip bits of torch\.int8"):
        format_of(torch.int8)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown number format 'fp12': use one of fp16, bf16"):
        number_format("fp12")
