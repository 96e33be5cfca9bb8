"""The checks of kept outputs, against the same checks written in plain fp64 torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ft2.native import OUTSIDE_BOUNDS, WRONG_SUM, Operations
from tests.native.patterns import DTYPES, bits, random_patterns

ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
# fp32 outputs carry the rounding of their accumulation too: up to 25 were seen with 4096 inputs.
ALLOWED = {torch.float16: 8.0, torch.bfloat16: 8.0, torch.float32: 64.0}
WIDTH = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32}


def flags(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.uint8, device=device)


def linear(
    dtype: torch.dtype, rows: int, inputs: int, columns: int, groups: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's outputs and inputs, and its summed weights (groups, inputs + 1)."""
    generator = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = (torch.randn(columns, inputs, generator=generator) / inputs**0.5).to(dtype)
    bias = torch.randn(columns, generator=generator).to(dtype)
    y = torch.nn.functional.linear(x, weight, bias)
    extended = torch.cat([weight, bias[:, None]], 1).double()
    return y, x, extended.view(groups, columns // groups, inputs + 1).sum(1).float()


def expected_sums(x: Tensor, weights: Tensor) -> Tensor:
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    return (torch.cat([x.double(), ones], 1) @ weights.double().T).float()


def margin(y: Tensor, expected: Tensor) -> Tensor:
    """How many unit roundoffs times the norm the sums are off, the worst group of each row."""
    grouped = y.double().view(len(y), expected.shape[1], -1)
    off = (grouped.sum(2) - expected.double()).abs() / grouped.norm(dim=2)
    return (off / ROUNDOFF[y.dtype]).amax(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "groups"), [(768, 1), (1000, 1), (768, 48), (512, 4)])
def test_no_false_alarm(
    operations: Operations, device: torch.device, dtype: torch.dtype, columns: int, groups: int
) -> None:
    rows = 4000
    y, x, weights = (part.to(device) for part in linear(dtype, rows, 96, columns, groups))
    found = flags(rows, device)
    operations.check_products([y], [x], [weights], found, ALLOWED[dtype])
    expected = expected_sums(x.cpu(), weights.cpu()).to(device)
    operations.check_sums([y], [expected], found, ALLOWED[dtype])
    assert found.sum() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 8])
def test_every_bit_is_judged_by_the_formula(
    operations: Operations, device: torch.device, dtype: torch.dtype, groups: int
) -> None:
    per_bit = 60
    rows = per_bit * WIDTH[dtype]
    y, x, weights = linear(dtype, rows, 64, 256, groups)
    integers = bits(y)
    row = torch.arange(rows)
    column = torch.randint(0, 256, (rows,), generator=torch.Generator().manual_seed(5))
    flip = torch.ones(rows, dtype=torch.int64) << (row // per_bit)
    integers[row, column] = (integers[row, column].long() ^ flip).to(integers.dtype)
    faulty = integers.view(dtype)
    expected = expected_sums(x, weights)
    off = margin(faulty, expected) / ALLOWED[dtype]
    found, again = flags(rows, device), flags(rows, device)
    operations.check_sums([faulty.to(device)], [expected.to(device)], found, ALLOWED[dtype])
    operations.check_products(
        [faulty.to(device)], [x.to(device)], [weights.to(device)], again, ALLOWED[dtype]
    )
    sure = ~((off > 0.99) & (off < 1.01))
    should = torch.where(~(off <= 1), WRONG_SUM, 0)
    assert torch.equal(found.cpu().long()[sure], should[sure])
    assert torch.equal(again.cpu().long()[sure], should[sure])
    assert sure.float().mean() > 0.95
    # The highest bit of the exponent is what most wrong answers come from.
    highest = found.cpu()[-2 * per_bit : -per_bit]
    assert (highest == WRONG_SUM).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e37, 1e-30])
def test_norms_neither_overflow_nor_vanish(
    operations: Operations, device: torch.device, dtype: torch.dtype, size: float
) -> None:
    y = (torch.randn(2, 16, generator=torch.Generator().manual_seed(0)) * size).to(dtype)
    expected = y.double().sum(1, keepdim=True).float().to(device)
    y[1, 3] *= 4
    found = flags(2, device)
    operations.check_sums([y.to(device)], [expected], found)
    assert found.tolist() == [0, WRONG_SUM]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_wrong(
    operations: Operations, device: torch.device, dtype: torch.dtype, value: float
) -> None:
    y = torch.zeros(3, 40, dtype=dtype, device=device)
    y[1, 7] = value
    expected = torch.zeros(3, 1, device=device)
    expected[2] = value
    found = flags(3, device)
    operations.check_sums([y], [expected], found)
    assert found.tolist() == [0, WRONG_SUM, WRONG_SUM]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_hold_what_restricting_would_leave(
    operations: Operations, device: torch.device, dtype: torch.dtype
) -> None:
    rows = 24
    outputs = [random_patterns(dtype, (rows, columns), columns) for columns in (1, 5, 64, 333)]
    for index, output in enumerate(outputs):
        inside = torch.arange(rows) % 5 != index
        output[inside] = torch.linspace(-0.95, 1, output.shape[1]).to(dtype)
    limit = torch.tensor([[-1.0, -0.9], [1.0, 1.0]])
    bounds = torch.stack([limit] * len(outputs))
    should = torch.zeros(rows, dtype=torch.bool)
    for output in outputs:
        values = output.float()
        low, high = (bound.to(dtype).float().repeat_interleave(rows // 2) for bound in limit)
        should |= ~((values >= low[:, None]) & (values <= high[:, None])).all(1)
    found = flags(rows, device)
    operations.check_bounds([each.to(device) for each in outputs], bounds.to(device), found)
    assert found.tolist() == (should * OUTSIDE_BOUNDS).tolist()
    assert 0 < should.sum() < rows


def test_flags_are_added_and_shared(operations: Operations, device: torch.device) -> None:
    y = torch.zeros(2, 3, 8, device=device)
    y[1, 2, 5] = 9
    bounds = torch.tensor([[[-1.0], [1.0]]], device=device)
    per_row, per_token, everything = flags(2, device), flags(6, device), flags(1, device)
    per_row[0] = 64
    for found in (per_row, per_token, everything):
        operations.check_bounds([y], bounds, found)
        operations.check_sums([y], [torch.zeros(6, device=device)], found)
    both = OUTSIDE_BOUNDS | WRONG_SUM
    assert per_row.tolist() == [64, both]
    assert per_token.tolist() == [0, 0, 0, 0, 0, both]
    assert everything.tolist() == [both]


def test_outputs_may_be_many_strided_and_empty(
    operations: Operations, device: torch.device
) -> None:
    count = 1000
    wide = torch.zeros(4, 2, 50, device=device)
    outputs = [wide[..., 7:40] for _ in range(count)]
    outputs[3] = wide[:0, :, :0]
    outputs[count - 1] = torch.full((4, 2, 9), 2.0, device=device)
    outputs[count - 1][:3] = 0
    wide[..., :7] = wide[..., 40:] = torch.nan
    found = flags(4, device)
    operations.check_sums(
        outputs, [output.new_zeros(output.shape[:2]) for output in outputs], found
    )
    assert found.tolist() == [0, 0, 0, WRONG_SUM]
    bounds = torch.tensor([[-1.0], [1.0]], device=device).expand(count, 2, 1).contiguous()
    operations.check_bounds(outputs, bounds, found)
    assert found.tolist() == [0, 0, 0, WRONG_SUM | OUTSIDE_BOUNDS]
    operations.check_sums([], [], found)
    operations.check_products([], [], [], found)
    operations.check_bounds([], bounds[:0], found)


def test_lists_that_do_not_fit_are_refused(operations: Operations) -> None:
    y, found = torch.zeros(4, 8), torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="expected sums"):
        operations.check_sums([y], [], found)
    with pytest.raises(RuntimeError, match="groups"):
        operations.check_sums([y], [torch.zeros(4, 3)], found)
    with pytest.raises(RuntimeError, match="one type"):
        operations.check_sums([y, y.half()], [torch.zeros(4)] * 2, found)
    with pytest.raises(RuntimeError, match="adjacent"):
        operations.check_sums([torch.zeros(8, 4).T], [torch.zeros(4)], found)
    with pytest.raises(RuntimeError, match="flags"):
        operations.check_sums([y], [torch.zeros(4)], found[:3])
    with pytest.raises(RuntimeError, match="bounds"):
        operations.check_bounds([y], torch.zeros(3), found)
    with pytest.raises(RuntimeError, match="input"):
        operations.check_products([y], [torch.zeros(3, 5)], [torch.zeros(6)], found)
    with pytest.raises(RuntimeError, match="summed weights"):
        operations.check_products([y], [torch.zeros(4, 5)], [torch.zeros(7)], found)
