"""Faults of a batch's rows, struck into one layer's output by a Triton kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ft2.faults import format_of

__all__ = ["strike"]

_ROWS = 128


@triton.jit(do_not_specialize=["columns", "rows", "number"])
def _strike(
    values: tl.tensor,
    layers: tl.tensor,
    neurons: tl.tensor,
    masks: tl.tensor,
    before: tl.tensor,
    columns: tl.tensor,
    rows: tl.tensor,
    number: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    is_row = row < rows
    is_struck = is_row & (tl.load(layers + row, mask=is_row, other=-1) == number)
    place = row * columns + tl.load(neurons + row, mask=is_struck, other=0)
    mask = tl.load(masks + row, mask=is_struck, other=0)
    value = tl.load(values + place, mask=is_struck, other=0)
    tl.store(before + row, value.to(tl.int64), mask=is_struck)
    tl.store(values + place, value ^ mask.to(value.dtype), mask=is_struck)


def strike(values: Tensor, faults: Tensor, before: Tensor, number: int) -> None:
    """Flip bits in place, in one layer's outputs.

    Parameters
    ----------
    values:
        (rows, columns), contiguous.
    faults:
        int64 (3, rows): of each row the layer, the column, and a mask of the bits, as a number of
        the integers that are as wide as a value.
    before:
        int64 (rows,): is given the patterns that were there, where a row was struck.
    number:
        Which layer it is.
    """
    rows, columns = values.shape
    patterns = values.view(format_of(values.dtype).pattern_dtype)
    _strike[(triton.cdiv(rows, _ROWS),)](
        patterns, *faults, before, columns, rows, number, block=_ROWS
    )
