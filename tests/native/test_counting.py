"""Counting what restriction would correct is counting what it corrects."""

from __future__ import annotations

import pytest
import torch

from ft2.native import Operations
from tests.native.patterns import DTYPES, bits, random_patterns

_BOUNDS = torch.tensor([[-1.5, -3e4], [2.0, 1e-3]])


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
