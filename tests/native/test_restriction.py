"""``restrict_`` and ``record_`` against plain torch, bit for bit, on every pattern and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ft2.native import Operations
from ft2.native.direct import RestrictionAt
from ft2.protection.arithmetic import learn, restrict
from tests.native.patterns import (
    DTYPES,
    Layer,
    bits,
    every_pattern,
    layers,
    random_patterns,
)

HALVES = [torch.float16, torch.bfloat16]
BOUNDS = [
    [[-1.2345678, 0.1, -3e4, -torch.inf], [2.3456789, 0.3, -1e-3, torch.inf]],
    [[0.0, -0.0, 0.0, -5.0], [1.0, 1.0, -0.0, 0.0]],
    [[-1e-7, 1e-6, -3e-6, 1e-40], [1e-7, 2e-6, -1e-8, 1e-38]],
    [[-65504.0, 65504.0, -7e4, -1e39], [65504.0, 1e5, 7e4, 3.4e38]],
]


def per_row(bound: Tensor, rows: int) -> Tensor:
    return bound.repeat_interleave(rows // bound.numel())[:, None, None]


def clipped(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip so that the sign of a zero is defined: what is within its bounds stays as it is."""
    clean = torch.nan_to_num(values, nan=0.0)
    wide = clean.to(torch.float32)
    result = torch.where(wide < low, low, torch.where(wide > high, high, wide))
    return result.to(values.dtype)


def check_restriction(
    operations: Operations, device: torch.device, layer: Layer, bounds: Tensor
) -> None:
    rows = layer.view.shape[0]
    low, high = (per_row(bound, rows) for bound in bounds)
    expected_count = torch.zeros(layer.requests, dtype=torch.int64)
    before = layer.storage.clone()
    expected = restrict(layer.view, layer.marks, low, high, expected_count)
    exactly = clipped(layer.view, low, high)

    storage = layer.storage.to(device)
    view = storage.as_strided(layer.view.shape, layer.view.stride(), layer.view.storage_offset())
    count = torch.zeros(layer.requests, dtype=torch.int64, device=device)
    marks = () if layer.marks is None else (layer.marks.to(device),)
    operations.restrict_(view, bounds.to(device), count, *marks)

    torch.testing.assert_close(view.cpu(), expected, rtol=0, atol=0)
    assert torch.equal(bits(view.cpu()), bits(exactly))
    assert torch.equal(count.cpu(), expected_count)
    outside = ~layer.inside
    assert torch.equal(bits(storage.cpu())[outside], bits(before)[outside]), "a neighbour changed"
    if layer.marks is None:
        again = before.to(device)
        view = again.as_strided(view.shape, view.stride(), view.storage_offset())
        total = torch.zeros_like(count)
        restriction = RestrictionAt(bounds.to(device), total, None)
        operations.restrict_at(view, restriction.address)
        assert torch.equal(bits(again), bits(storage))
        assert torch.equal(total, count)


def check_recording(operations: Operations, device: torch.device, layer: Layer) -> None:
    count = torch.zeros(layer.requests, dtype=torch.int64)
    bounds = torch.tensor([[torch.inf], [-torch.inf]]).repeat(1, layer.requests)
    before, expected_bounds = layer.storage.clone(), bounds.clone()
    marks = layer.marks
    expected = layer.view
    if layer.view.numel():
        real = marks if marks is None else marks.expand(layer.view.shape[:2])
        expected = learn(layer.view, real, expected_bounds[0], expected_bounds[1], count)

    storage = layer.storage.to(device)
    view = storage.as_strided(layer.view.shape, layer.view.stride(), layer.view.storage_offset())
    found_count = torch.zeros(layer.requests, dtype=torch.int64, device=device)
    found_bounds = bounds.to(device)
    on_device = () if marks is None else (marks.to(device),)
    operations.record_(view, found_bounds, found_count, *on_device)

    assert torch.equal(bits(view.cpu()), bits(expected))
    # Which of the zeros torch takes for a minimum depends on the order; here it is always +0.
    assert torch.equal(bits(found_bounds.cpu()), bits(expected_bounds + 0.0))
    assert torch.equal(found_count.cpu(), count)
    outside = ~layer.inside
    assert torch.equal(bits(storage.cpu())[outside], bits(before)[outside]), "a neighbour changed"
    if marks is None:
        again = before.to(device)
        view = again.as_strided(view.shape, view.stride(), view.storage_offset())
        total, seen = torch.zeros_like(found_count), bounds.to(device)
        recording = RestrictionAt(seen, total, None)
        operations.record_at(view, recording.address)
        assert torch.equal(bits(again), bits(storage))
        assert torch.equal(bits(seen), bits(found_bounds))
        assert torch.equal(total, found_count)


def whole(values: Tensor, requests: int, marks: Tensor | None = None) -> Layer:
    inside = torch.ones(values.shape, dtype=torch.bool)
    return Layer(values, values, inside, requests, marks)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_restricting_every_half_precision_number(
    operations: Operations, device: torch.device, dtype: torch.dtype, bounds: list[list[float]]
) -> None:
    limit = torch.finfo(dtype).max
    layer = whole(every_pattern(dtype), 4)
    check_restriction(operations, device, layer, torch.tensor(bounds).clamp(-limit, limit))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("requests", [1, 2, 4])
def test_recording_every_half_precision_number(
    operations: Operations, device: torch.device, dtype: torch.dtype, requests: int
) -> None:
    values = every_pattern(dtype)
    check_recording(operations, device, whole(values, requests))
    marks = torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) > 0.3
    check_recording(operations, device, whole(values, requests, marks))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [4095, 4096, 4097, 9000])
def test_long_rows_on_several_threads(
    operations: Operations, device: torch.device, threads: int, dtype: torch.dtype, columns: int
) -> None:
    bounds = torch.tensor([[-0.5, -1.5], [0.7, 1.2]])
    values = random_patterns(dtype, (4, 5, columns), seed=columns)
    marks = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    for layer in (whole(values, 2), whole(values, 2, marks), whole(values, 4, marks[:, :1])):
        check_recording(operations, device, layer)
        if layer.requests == 2:
            check_restriction(operations, device, layer, bounds)


@st.composite
def bounded_layers(draw: st.DrawFn) -> tuple[Layer, Tensor]:
    layer = draw(layers())
    limit = torch.finfo(layer.view.dtype).max
    number = st.floats(-limit, limit, width=32)
    pairs = [sorted((draw(number), draw(number))) for _ in range(layer.requests)]
    return layer, torch.tensor(pairs).T.contiguous()


@given(bounded_layers())
def test_restricting_any_layout(operations: Operations, drawn: tuple[Layer, Tensor]) -> None:
    check_restriction(operations, torch.device("cpu"), *drawn)


@given(layers())
def test_recording_any_layout(operations: Operations, layer: Layer) -> None:
    check_recording(operations, torch.device("cpu"), layer)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_any_layout_on_cuda(operations: Operations, device: torch.device, seed: int) -> None:
    dtype = DTYPES[seed % 3]
    storage = random_patterns(dtype, (6, 3, 600), seed)
    begin, step = seed % 9, 1 + seed % 2
    inside = torch.zeros(storage.shape, dtype=torch.bool)
    inside[:, :2, begin:500:step] = True
    layer = Layer(storage, storage[:, :2, begin:500:step], inside, 3, None)
    check_recording(operations, device, layer)
    check_restriction(operations, device, layer, torch.tensor([[-1.0, -0.5, 0], [1, 0.5, 2]]))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0), (0,), (0, 0, 0)])
def test_empty_tensors_are_left_alone(
    operations: Operations, device: torch.device, shape: tuple[int, ...]
) -> None:
    values = torch.empty(shape, device=device)
    bounds = torch.tensor([[-1.0], [1.0]], device=device)
    count = torch.zeros(1, dtype=torch.int64, device=device)
    operations.restrict_(values, bounds, count)
    operations.record_(values, bounds, count)
    assert bounds.tolist() == [[-1.0], [1.0]]
    assert count.tolist() == [0]


def test_flattened_rows_are_the_same_rows(operations: Operations, device: torch.device) -> None:
    values = random_patterns(torch.float16, (4, 3, 50), seed=3).to(device)
    flat = values.reshape(12, 50).clone()
    bounds = torch.tensor([[-1.0, -0.1], [0.5, 2.0]], device=device)
    live = torch.tensor([[True], [False], [True], [True]], device=device)
    counts = torch.zeros(2, 2, dtype=torch.int64, device=device)
    operations.restrict_(values, bounds, counts[0], live)
    operations.restrict_(flat, bounds, counts[1], live)
    assert torch.equal(bits(flat.cpu()), bits(values.reshape(12, 50).cpu()))
    assert counts[0].tolist() == counts[1].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bound", [torch.inf, torch.nan, 3.4e38])
def test_bounds_end_where_the_type_does(
    operations: Operations, device: torch.device, dtype: torch.dtype, bound: float
) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([-torch.inf, torch.nan, -largest, largest, torch.inf], dtype=dtype)
    restricted = values[None].to(device)
    count = torch.zeros(1, dtype=torch.int64, device=device)
    bounds = torch.tensor([[-bound], [bound]])
    if dtype is torch.float32 and bound == 3.4e38:
        largest = bounds[1].item()
        count -= 2
    operations.restrict_(restricted, bounds.to(device), count)
    assert restricted[0].tolist() == [-largest, 0.0, -largest, largest, largest]
    assert count.item() == 3


@pytest.mark.parametrize(
    ("values", "bounds", "count", "marks", "complaint"),
    [
        (torch.zeros(1, 4).double(), torch.zeros(2, 1), torch.zeros(1).long(), None, "float16"),
        (torch.zeros(1, 4), torch.zeros(2, 1).half(), torch.zeros(1).long(), None, "float32"),
        (torch.zeros(3, 4), torch.zeros(2, 2), torch.zeros(1).long(), None, "multiple of n"),
        (torch.zeros(3, 4), torch.zeros(2, 1), torch.zeros(2).long(), None, "counters"),
        (torch.zeros(3, 4), torch.zeros(2, 1), torch.zeros(1).int(), None, "int64"),
        (torch.zeros(3, 4), torch.zeros(3, 2).T, torch.zeros(1).long(), None, "contiguous"),
        (torch.zeros(3, 4), torch.zeros(2, 1), torch.zeros(1).long(), torch.ones(2), "bool"),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 1),
            torch.zeros(1).long(),
            torch.ones(2, dtype=torch.bool),
            "marks",
        ),
        (
            torch.zeros(1, 1, 4, 3).mT,
            torch.zeros(2, 1),
            torch.zeros(1).long(),
            None,
            "three dimensions",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    operations: Operations,
    values: Tensor,
    bounds: Tensor,
    count: Tensor,
    marks: Tensor | None,
    complaint: str,
) -> None:
    before = values.clone()
    for operation in (operations.restrict_, operations.record_):
        with pytest.raises(RuntimeError, match=complaint):
            operation(values, bounds, count, marks)
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_an_address_only_counted_requests_are_counted(
    operations: Operations, device: torch.device, dtype: torch.dtype
) -> None:
    bounds = torch.tensor(BOUNDS[0], device=device)
    values = random_patterns(dtype, (4, 3, 33), 7).to(device)
    counted = torch.tensor([[True], [False], [False], [True]], device=device)
    expected, corrected = torch.zeros(2, 4, dtype=torch.int64, device=device)
    other = values.clone()
    operations.restrict_(other, bounds, expected, counted)
    restriction = RestrictionAt(bounds, corrected, counted)
    operations.restrict_at(values, restriction.address)
    assert torch.equal(bits(values), bits(other))
    assert torch.equal(corrected, expected)
    assert expected[0] > 0
    assert expected[1] == 0


def test_at_an_address_the_tokens_are_a_multiple_of_the_requests(
    operations: Operations, device: torch.device
) -> None:
    count = torch.zeros(2, dtype=torch.int64, device=device)
    restriction = RestrictionAt(torch.ones(2, 2, device=device), count, None)
    with pytest.raises(RuntimeError, match="a multiple of the requests"):
        operations.restrict_at(torch.ones(3, 4, device=device), restriction.address)
    operations.restrict_at(torch.ones(0, 4, device=device), restriction.address)
    assert count.tolist() == [0, 0]
