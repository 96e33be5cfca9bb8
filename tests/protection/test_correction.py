"""What each correction makes of every value, and what it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ft2.protection.correction import CLAMP, CLIP, ZERO, Correction

_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
_SPECIAL = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0]


def _expected(correction: Correction, value: float, low: float, high: float) -> float:
    """What one number becomes, by the words of the paper."""
    if np.isnan(value):
        if correction is CLAMP:
            return value
        value = 0.0
    if correction is ZERO and not low <= value <= high:
        return 0.0
    return min(max(value, low), high)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Values (2, 3, 2) of two requests, and bounds (2, 2) in the dtype's range."""
    dtype = draw(st.sampled_from(_DTYPES))
    limit = 1000.0
    number = st.floats(-limit, limit, width=16) | st.sampled_from(_SPECIAL)
    values = torch.tensor(draw(st.lists(number, min_size=12, max_size=12)), dtype=dtype)
    pairs = [sorted(draw(st.tuples(*[st.floats(-limit, limit, width=16)] * 2))) for _ in range(2)]
    kept_in = torch.promote_types(dtype, torch.float32)
    # A bound that is a number of the dtype is not rounded.
    bounds = torch.tensor(pairs).to(dtype).to(kept_in).T.contiguous()
    return values.view(2, 3, 2), bounds


@pytest.mark.parametrize("correction", [CLIP, ZERO, CLAMP], ids=["clip", "zero", "clamp"])
@given(case=_cases())
def test_each_value_becomes_what_it_should_and_those_that_change_are_counted(
    correction: Correction, case: tuple[Tensor, Tensor]
) -> None:
    values, bounds = case
    expected = torch.tensor(
        [
            [_expected(correction, float(value), *map(float, bounds[:, row])) for value in flat]
            for row, flat in enumerate(values.flatten(1))
        ]
    ).view(2, 3, 2)
    changed = (expected != values.float()) & ~expected.isnan()
    corrected = torch.zeros(2, dtype=torch.int64)
    restricted = correction.restrict(values.clone(), None, bounds, corrected)
    torch.testing.assert_close(
        restricted.double(), expected.double(), rtol=0, atol=0, equal_nan=True
    )
    assert restricted.dtype == values.dtype
    assert corrected.tolist() == changed.flatten(1).sum(1).tolist()
    vectors = torch.zeros(2, dtype=torch.int64)
    request = torch.tensor([0, 0, 0, 1, 1, 1])
    by_vector = correction.restrict_vectors(
        values.reshape(6, 2), None, bounds[:, request], request, vectors
    )
    torch.testing.assert_close(by_vector.view(2, 3, 2), restricted, rtol=0, atol=0, equal_nan=True)
    assert vectors.tolist() == corrected.tolist()


@pytest.mark.parametrize("correction", [CLIP, ZERO, CLAMP], ids=["clip", "zero", "clamp"])
def test_what_is_not_live_is_corrected_and_not_counted(correction: Correction) -> None:
    values = torch.full((2, 3, 4), 9.0)
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    live = torch.tensor([[True, False, False], [False, False, False]])
    corrected = torch.zeros(2, dtype=torch.int64)
    restricted = correction.restrict(values.clone(), live, bounds, corrected)
    assert restricted.abs().max() <= 1
    assert corrected.tolist() == [4, 0]
