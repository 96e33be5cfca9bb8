"""Restricting on the way into a sum or product, and counting, are what the parts of them are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ft2.native import Operations
from tests.native.patterns import DTYPES, bits, every_pattern, random_patterns

_BOUNDS = torch.tensor([[-1.5, -3e4], [2.0, 1e-3]])
_PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "restrict_and_add": torch.add,
    "restrict_and_multiply": torch.mul,
}


def check_combination(
    operations: Operations,
    device: torch.device,
    name: str,
    values: Tensor,
    others: Tensor,
    marks: tuple[Tensor, ...] = (),
) -> None:
    bounds, on_device = _BOUNDS.to(device), tuple(mark.to(device) for mark in marks)
    expected, output = values.to(device, copy=True), values.to(device, copy=True)
    other = others.to(device)
    counted, count = torch.zeros(2, 2, dtype=torch.int64, device=device)
    operations.restrict_(expected, bounds, counted, *on_device)
    result = getattr(operations, name)(output, other, bounds, count, *on_device)
    assert torch.equal(bits(output), bits(expected)), "restricted otherwise"
    assert torch.equal(count, counted)
    assert torch.equal(bits(other.cpu()), bits(others)), "the other operand changed"
    plain = _PLAIN[name](expected, other)
    assert torch.equal(result.isnan(), plain.isnan())
    assert torch.equal(bits(result)[~result.isnan()], bits(plain)[~plain.isnan()])


@pytest.mark.parametrize("name", _PLAIN)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_in_a_sum_and_a_product(
    operations: Operations, device: torch.device, name: str, dtype: torch.dtype
) -> None:
    values = every_pattern(dtype)
    check_combination(operations, device, name, values, values.flip(-1).roll(1, 0))
    check_combination(operations, device, name, values, random_patterns(dtype, (4, 64, 256), 5))


@pytest.mark.parametrize("name", _PLAIN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 4096, 4097, 9000])
def test_rows_of_any_length_on_several_threads(
    operations: Operations,
    device: torch.device,
    threads: int,
    name: str,
    dtype: torch.dtype,
    columns: int,
) -> None:
    values, others = (random_patterns(dtype, (2, 9, columns), seed) for seed in (columns, 3))
    marks = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    check_combination(operations, device, name, values, others)
    check_combination(operations, device, name, values, others, (marks,))


@given(
    st.sampled_from(sorted(_PLAIN)),
    st.sampled_from(DTYPES),
    st.tuples(st.integers(1, 3), st.integers(0, 40)),
    st.integers(0, 2**32 - 2),
)
def test_a_combination_of_any_patterns(
    operations: Operations, name: str, dtype: torch.dtype, shape: tuple[int, int], seed: int
) -> None:
    tokens, columns = shape
    values, others = (random_patterns(dtype, (2, tokens, columns), seed + n) for n in (0, 1))
    check_combination(operations, torch.device("cpu"), name, values, others)


@pytest.mark.parametrize("name", _PLAIN)
def test_operands_that_do_not_match_are_refused_before_anything_changes(
    operations: Operations, device: torch.device, name: str
) -> None:
    values = torch.full((2, 4), 100.0, device=device)
    count = torch.zeros(2, dtype=torch.int64, device=device)
    others: list[Any] = [
        torch.ones(4, device=device),
        torch.ones(2, 4, device=device, dtype=torch.float16),
        torch.ones(4, 2, device=device).T,
    ]
    for other in others:
        with pytest.raises(RuntimeError, match="of one shape and one type"):
            getattr(operations, name)(values, other, _BOUNDS.to(device), count)
    assert torch.equal(values, torch.full_like(values, 100.0))
    assert count.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [1, 3, 60, 500])
def test_what_is_counted_later_is_what_would_have_been_corrected(
    operations: Operations, device: torch.device, dtype: torch.dtype, outputs: int
) -> None:
    kept = [random_patterns(dtype, (2, 1 + each % 3, 33 + each), each) for each in range(outputs)]
    bounds = _BOUNDS * torch.linspace(0.5, 2, outputs)[:, None, None]
    for marks in ((), (torch.tensor([[True], [False]]),)):
        expected, count = torch.zeros(2, 2, dtype=torch.int64)
        for output, bound in zip(kept, bounds, strict=True):
            operations.restrict_(output.clone(), bound.contiguous(), expected, *marks)
        found = count.to(device)
        on_device = [output.to(device) for output in kept]
        operations.count_outside(
            on_device, bounds.to(device), found, *(mark.to(device) for mark in marks)
        )
        assert torch.equal(found.cpu(), expected)
        assert expected[0] > 0
        for output, before in zip(on_device, kept, strict=True):
            assert torch.equal(bits(output.cpu()), bits(before)), "counting changed an output"
