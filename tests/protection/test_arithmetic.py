"""The arithmetic of range restriction, against the same arithmetic written in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from ft2.protection.arithmetic import bounds_dtype, learn, restrict, widen

Reals = NDArray[np.float64]

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32, torch.float64]
LARGEST = {
    torch.float16: 65504.0,
    torch.bfloat16: (2 - 2.0**-7) * 2.0**127,
    torch.float32: float(np.finfo(np.float32).max),
    torch.float64: float(np.finfo(np.float64).max),
}
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def every_pattern(dtype: torch.dtype) -> Tensor:
    """All 65,536 numbers of a 16-bit type, (4 rows, 64 tokens, 256 columns), no row alike."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    return patterns.view(dtype).view(64, 4, 256).transpose(0, 1).contiguous()


def in_numpy(values: Tensor) -> Reals:
    return values.to(torch.float64).numpy()


def unlearned(requests: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    kept_in = bounds_dtype(dtype)
    return (
        torch.full((requests,), torch.inf, dtype=kept_in),
        torch.full((requests,), -torch.inf, dtype=kept_in),
        torch.zeros(requests, dtype=torch.int64),
    )


def expected_learning(
    values: Reals, real: NDArray[np.bool_], requests: int, largest: float
) -> tuple[Reals, Reals, Reals, NDArray[np.int64]]:
    clean = np.where(np.isnan(values), 0.0, values)
    saturated = np.clip(clean, -largest, largest)
    low, high = np.full(requests, np.inf), np.full(requests, -np.inf)
    wrong = np.zeros(requests, dtype=np.int64)
    rows, tokens, _ = values.shape
    for row in range(rows):
        request = row // (rows // requests)
        for token in range(tokens):
            if real[row, token]:
                seen = clean[row, token][np.isfinite(clean[row, token])]
                low[request] = min([low[request], *seen])
                high[request] = max([high[request], *seen])
                wrong[request] += np.sum(~np.isfinite(values[row, token]))
    return saturated, low, high, wrong


def check_learning(output: Tensor, real: Tensor | None, requests: int) -> None:
    given = output.clone()
    low, high, corrected = unlearned(requests, output.dtype)
    clean = learn(output, real, low, high, corrected)
    mask = np.ones(output.shape[:2], dtype=bool) if real is None else real.numpy()
    expected = expected_learning(in_numpy(output), mask, requests, LARGEST[output.dtype])
    assert clean.dtype == output.dtype
    np.testing.assert_array_equal(in_numpy(clean), expected[0])
    np.testing.assert_array_equal(in_numpy(low), expected[1])
    np.testing.assert_array_equal(in_numpy(high), expected[2])
    np.testing.assert_array_equal(corrected.numpy(), expected[3])
    assert torch.equal(given.nan_to_num(7.0), output.nan_to_num(7.0)), "the input was changed"


def rounded(values: NDArray[Any], dtype: torch.dtype) -> Reals:
    """Numbers kept in fp32 (fp64 for fp64) to the nearest of `dtype`, ties to even."""
    if dtype is torch.float16:
        return values.astype(np.float16).astype(np.float64)
    if dtype is torch.bfloat16:
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        kept = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        return (kept << np.uint64(16)).astype(np.uint32).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def check_restriction(output: Tensor, live: Tensor | None, low: Tensor, high: Tensor) -> None:
    corrected = torch.zeros(low.shape[0], dtype=torch.int64)
    rows = output.shape[0]
    below, above = widen(low, high, 1.0, output.dtype, rows)
    restricted = restrict(output, live, below, above, corrected)
    values = in_numpy(output)
    zeroed = np.where(np.isnan(values), 0.0, values)
    lower, upper = in_numpy(below), in_numpy(above)
    clipped = np.minimum(np.maximum(zeroed, lower), upper)
    expected = rounded(clipped.astype(NUMPY[bounds_dtype(output.dtype)]), output.dtype)
    wrong = np.isnan(values) | (expected != values)
    if live is not None:
        wrong &= live.numpy()[..., None]
    assert restricted.dtype == output.dtype
    np.testing.assert_array_equal(in_numpy(restricted), expected)
    per_request = wrong.reshape(low.shape[0], -1).sum(1)
    np.testing.assert_array_equal(corrected.numpy(), per_request)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("requests", [1, 2, 4])
def test_learning_is_right_for_every_half_precision_number(
    dtype: torch.dtype, requests: int
) -> None:
    values = every_pattern(dtype)
    check_learning(values, None, requests)
    check_learning(values, torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) > 0.3, 2)


@pytest.mark.parametrize("dtype", HALVES)
def test_restricting_is_right_for_every_half_precision_number(dtype: torch.dtype) -> None:
    low = torch.tensor([-1.2345678, 0.1, -3e4, -torch.inf]).clamp(min=-LARGEST[dtype])
    high = torch.tensor([2.3456789, 0.3, -1e-3, torch.inf]).clamp(max=LARGEST[dtype])
    check_restriction(every_pattern(dtype), None, low, high)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, int]:
    dtype = draw(st.sampled_from(DTYPES))
    requests, beams, tokens, columns = (draw(st.integers(1, 3)) for _ in range(4))
    shape = (requests * beams, tokens, columns)
    kind = NUMPY[bounds_dtype(dtype)]
    values = torch.from_numpy(draw(arrays(kind, shape))).to(dtype)
    real = draw(st.none() | arrays(np.bool_, shape[:2]).map(torch.from_numpy))
    return values, real, requests


@given(outputs())
def test_learning_agrees_with_numpy_in_every_type(
    drawn: tuple[Tensor, Tensor | None, int],
) -> None:
    check_learning(*drawn)


@given(outputs(), st.data())
def test_restricting_agrees_with_numpy_in_every_type(
    drawn: tuple[Tensor, Tensor | None, int], data: st.DataObject
) -> None:
    output, live, requests = drawn
    largest = LARGEST[output.dtype]
    finite = st.floats(-largest, largest, allow_nan=False)
    pairs = [sorted((data.draw(finite), data.draw(finite))) for _ in range(requests)]
    low, high = torch.tensor(pairs, dtype=bounds_dtype(output.dtype)).unbind(1)
    check_restriction(output, live, low.contiguous(), high.contiguous())


@given(st.data(), st.sampled_from(DTYPES), st.floats(1, 100))
def test_widening_only_ever_widens(data: st.DataObject, dtype: torch.dtype, scale: float) -> None:
    largest = LARGEST[dtype]
    kept_in = bounds_dtype(dtype)
    finite = st.floats(-largest, largest, allow_nan=False)
    low, high = torch.tensor([sorted((data.draw(finite), data.draw(finite)))], dtype=kept_in).T
    below, above = (bound.flatten() for bound in widen(low, high, scale, dtype, 1))
    assert -largest <= below <= low <= high <= above <= largest
    if scale >= 2:
        assert below <= 0 <= above
    by = NUMPY[kept_in](scale - 1)
    with np.errstate(over="ignore"):
        expected_low = low.numpy() - by * np.abs(low.numpy())
        expected_high = high.numpy() + by * np.abs(high.numpy())
    assert below.item() == np.clip(expected_low, -largest, largest).item()
    assert above.item() == np.clip(expected_high, -largest, largest).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_of_one_leaves_the_bounds_alone(dtype: torch.dtype) -> None:
    pairs = [[-3.5, 0.5, -7.0], [-1.25, 2.5, 0.0]]
    low, high = torch.tensor(pairs, dtype=bounds_dtype(dtype))
    below, above = widen(low, high, 1.0, dtype, 3)
    assert torch.equal(below.flatten(), low)
    assert torch.equal(above.flatten(), high)


@pytest.mark.parametrize(
    ("low", "high", "below", "above"),
    [
        (-3.0, 5.0, -6.0, 10.0),
        (3.0, 5.0, 0.0, 10.0),
        (-5.0, -3.0, -10.0, 0.0),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_a_scale_of_two_doubles_bounds_outwards_and_lets_zero_in(
    low: float, high: float, below: float, above: float
) -> None:
    lower, upper = widen(torch.tensor([low]), torch.tensor([high]), 2.0, torch.float16, 1)
    assert (lower.item(), upper.item()) == (below, above)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_stay_within_the_type(dtype: torch.dtype) -> None:
    largest = LARGEST[dtype]
    kept_in = bounds_dtype(dtype)
    low, high = torch.tensor([[-largest], [largest]], dtype=kept_in)
    below, above = widen(low, high, 2.0, dtype, 1)
    assert (below.item(), above.item()) == (-largest, largest)
    infinite = torch.tensor([[[torch.inf, -torch.inf]]], dtype=dtype)
    corrected = torch.zeros(1, dtype=torch.int64)
    restricted = restrict(infinite, None, below, above, corrected)
    assert restricted.flatten().tolist() == [largest, -largest]
    assert corrected.tolist() == [2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nothing_was_learned_only_nan_and_inf_are_corrected(dtype: torch.dtype) -> None:
    low, high, corrected = unlearned(1, dtype)
    largest = LARGEST[dtype]
    output = torch.tensor([[[largest, -largest, 1.0, torch.nan, torch.inf]]], dtype=dtype)
    assert learn(output[..., 3:], torch.tensor([[False]]), low, high, corrected)[0, 0, 0] == 0
    restricted = restrict(output, None, *widen(low, high, 2.0, dtype, 1), corrected)
    assert restricted.flatten().tolist() == [largest, -largest, 1.0, 0.0, largest]
    assert corrected.tolist() == [2]


def test_learning_in_pieces_is_learning_at_once() -> None:
    output = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1))
    low, high, corrected = unlearned(2, output.dtype)
    for piece in output.split(2, dim=1):
        learn(piece, None, low, high, corrected)
    assert torch.equal(low, output.amin((1, 2)))
    assert torch.equal(high, output.amax((1, 2)))


def test_rows_of_one_request_share_bounds_and_counts() -> None:
    output = torch.tensor([1.0, -2.0, 30.0, torch.nan]).view(4, 1, 1)
    low, high, corrected = unlearned(2, output.dtype)
    learn(output, None, low, high, corrected)
    assert low.tolist() == [-2.0, 0.0]
    assert high.tolist() == [1.0, 30.0]
    assert corrected.tolist() == [0, 1]
    below, above = widen(low, high, 2.0, output.dtype, 4)
    assert below.flatten().tolist() == [-4.0, -4.0, 0.0, 0.0]
    assert above.flatten().tolist() == [2.0, 2.0, 60.0, 60.0]
    restricted = restrict(torch.full((4, 1, 1), 50.0), None, below, above, corrected)
    assert restricted.flatten().tolist() == [2.0, 2.0, 50.0, 50.0]
    assert corrected.tolist() == [2, 1]


def test_what_is_not_live_is_corrected_without_being_counted() -> None:
    output = torch.full((2, 1, 3), torch.nan)
    below, above = torch.full((2, 1, 1), -1.0), torch.full((2, 1, 1), 1.0)
    corrected = torch.zeros(2, dtype=torch.int64)
    restricted = restrict(output, torch.tensor([[True], [False]]), below, above, corrected)
    assert torch.equal(restricted, torch.zeros(2, 1, 3))
    assert corrected.tolist() == [3, 0]


def test_a_layer_that_ran_on_nothing_learns_nothing() -> None:
    low, high, corrected = unlearned(2, torch.float16)
    padding = torch.zeros(2, 3, dtype=torch.bool)
    learn(torch.full((2, 3, 4), torch.nan, dtype=torch.float16), padding, low, high, corrected)
    assert low.tolist() == [torch.inf, torch.inf]
    assert high.tolist() == [-torch.inf, -torch.inf]
    assert corrected.tolist() == [0, 0]


def test_gradients_pass_through_what_was_not_corrected() -> None:
    output = torch.tensor([[[1.0, 50.0, torch.nan, -50.0]]], requires_grad=True)
    bound = torch.full((1, 1, 1), 10.0)
    restricted = restrict(output, None, -bound, bound, torch.zeros(1, dtype=torch.int64))
    restricted.sum().backward()
    assert output.grad is not None
    assert output.grad.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
