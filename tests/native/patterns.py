"""Tensors of every bit pattern, in every layout, and the plain torch that they are judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
_INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
_SPECIAL = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, -torch.nan]


def bits(values: Tensor) -> Tensor:
    """The patterns as integers, so that NaN equals itself and the zeros differ."""
    return values.contiguous().view(_INTEGERS[values.dtype])


def every_pattern(dtype: torch.dtype) -> Tensor:
    """All 65,536 numbers of a 16-bit type, (4 rows, 64 tokens, 256 columns), no row alike."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    return patterns.view(dtype).view(64, 4, 256).transpose(0, 1).contiguous()


def random_patterns(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Patterns of all kinds: a third any bits at all, a third near 1, a third special."""
    generator = torch.Generator().manual_seed(seed)
    integer = _INTEGERS[dtype]
    limits = torch.iinfo(integer)
    raw = torch.randint(limits.min, limits.max + 1, shape, generator=generator, dtype=torch.int64)
    anything = raw.to(integer).view(dtype)
    near_one = torch.randn(shape, generator=generator).to(dtype)
    special = torch.tensor([*_SPECIAL, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 2])
    chosen = torch.randint(0, len(special), shape, generator=generator)
    kind = torch.randint(0, 3, shape, generator=generator)
    both = torch.where(kind == 0, bits(anything), bits(near_one))
    return torch.where(kind == 2, bits(special.to(dtype)[chosen]), both).view(dtype)


@dataclass
class Layer:
    """A layer's output as a view of a wider storage, and what goes with it."""

    storage: Tensor
    view: Tensor
    inside: Tensor  # bool, in the storage's shape
    requests: int
    marks: Tensor | None


@st.composite
def layers(draw: st.DrawFn, most_columns: int = 70) -> Layer:
    """Layers of any shape, strides, column range, requests and marks."""
    dtype = draw(st.sampled_from(DTYPES))
    requests, beams = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows, tokens = requests * beams, draw(st.integers(1, 3))
    columns = draw(st.integers(0, most_columns))
    step = draw(st.sampled_from([1, 1, 1, 2]))
    before, after = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    gap = draw(st.integers(0, 1))
    width = before + columns * step + after
    transposed = draw(st.booleans())
    leading = (tokens + gap, rows) if transposed else (rows, tokens + gap)
    storage = random_patterns(dtype, (*leading, width), draw(st.integers(0, 2**32 - 1)))

    def slice_of(tensor: Tensor) -> Tensor:
        upright = tensor.transpose(0, 1) if transposed else tensor
        return upright[:, :tokens, before : before + columns * step : step]

    inside = torch.zeros(storage.shape, dtype=torch.bool)
    slice_of(inside).fill_(True)
    marks = None
    if draw(st.booleans()):
        per_row = draw(st.sampled_from([1, tokens]))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
        # Every second one of a wider mask, so that it has strides too.
        wide = torch.rand(rows, 2 * per_row, generator=generator) > 0.4
        marks = wide[:, ::2]
    return Layer(storage, slice_of(storage), inside, requests, marks)
