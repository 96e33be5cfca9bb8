"""Checks past torch flag what the operations flag, or say that they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ft2.native import Operations
from ft2.native.direct import Checked, DirectChecks, hears_no_operations
from tests.native.patterns import DTYPES, random_patterns


def _bounds(layers: int, requests: int, device: torch.device) -> Tensor:
    bounds = torch.tensor([[-2.0], [3.0]]) * torch.linspace(0.5, 9e3, layers)[:, None, None]
    return bounds.repeat(1, 1, requests).to(device)


def _outputs(dtype: torch.dtype, layers: int, rows: int, seed: int) -> list[Tensor]:
    return [random_patterns(dtype, (rows, 2, 5 + each), seed + each) for each in range(layers)]


def _check_bounds(
    operations: Operations, device: torch.device, outputs: list[Tensor], requests: int, flags: int
) -> None:
    outputs = [each.to(device) for each in outputs]
    bounds = _bounds(len(outputs), requests, device)
    expected, found = torch.zeros(2, flags, dtype=torch.uint8, device=device)
    operations.check_bounds(outputs, bounds, expected)
    layers = [
        Checked(against, each.shape[-1], 0, requests)
        for against, each in zip(bounds, outputs, strict=True)
    ]
    assert DirectChecks(layers, found, outputs[0].dtype).check_bounds(outputs)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("layers", [1, 60, 250, 500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_are_checked_as_by_the_operation(
    operations: Operations, device: torch.device, dtype: torch.dtype, layers: int
) -> None:
    _check_bounds(operations, device, _outputs(dtype, layers, 4, 3), 2, 8)


@given(
    st.sampled_from(DTYPES),
    st.integers(1, 5),
    st.sampled_from([(1, 1), (2, 2), (2, 4), (4, 8)]),
    st.integers(0, 2**32 - 100),
)
def test_any_outputs_are_checked_as_by_the_operation(
    operations: Operations, dtype: torch.dtype, layers: int, shared: tuple[int, int], seed: int
) -> None:
    outputs = _outputs(dtype, layers, 4, seed)
    _check_bounds(operations, torch.device("cpu"), outputs, *shared)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_checked_as_by_the_operation(
    operations: Operations, device: torch.device, dtype: torch.dtype
) -> None:
    numbers = torch.Generator().manual_seed(2)
    inputs, outputs, sums = [], [], []
    for columns in (64, 96, 128):
        weight = torch.randn(columns, 48, generator=numbers).to(dtype)
        given_to = torch.randn(6, 1, 48, generator=numbers).to(dtype)
        inputs.append(given_to.to(device))
        outputs.append((given_to.float() @ weight.float().T).to(dtype).to(device))
        summed = torch.nn.functional.pad(weight.double().sum(0)[None], (0, 1)).float()
        sums.append(summed.to(device))
    outputs[1][2, 0, 5] += 40
    outputs[2][4, 0, 0] = torch.nan
    expected, found = torch.zeros(2, 6, dtype=torch.uint8, device=device)
    operations.check_products(outputs, inputs, sums, expected, 64.0)
    layers = [
        Checked(against, each.shape[-1], 48, 1) for against, each in zip(sums, outputs, strict=True)
    ]
    assert DirectChecks(layers, found, dtype, 64.0).check_products(outputs, inputs)
    assert found.tolist() == expected.tolist() == [0, 0, 2, 0, 2, 0]


class _Own(Tensor):
    pass


_REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "another type": lambda output: output.double(),
    "another width": lambda output: output[..., :4].contiguous(),
    "not adjacent": lambda output: output.mT.contiguous().mT,
    "a class of its own": lambda output: output.as_subclass(_Own),
    "no tokens": lambda output: output[:0],
    "on another device": lambda output: output.to("meta"),
}


@pytest.mark.parametrize("change", _REFUSED.values(), ids=list(_REFUSED))
def test_what_they_do_not_take_is_left_to_torch(change: Callable[[Tensor], Tensor]) -> None:
    flags = torch.zeros(2, dtype=torch.uint8)
    layers = [Checked(each, 5, 3, 1) for each in _bounds(2, 1, flags.device)]
    checks = DirectChecks(layers, flags, torch.float32)
    output = torch.full((2, 3, 5), 1e9)
    assert checks.check_bounds([output, output])
    assert flags.tolist() == [1, 1]
    flags.zero_()
    assert not checks.check_bounds([output, change(output)])
    assert not checks.check_products([output, output], [output[..., :3].contiguous(), output])
    assert flags.tolist() == [0, 0]


def test_tokens_that_do_not_share_evenly_are_left_to_torch() -> None:
    flags = torch.zeros(2, dtype=torch.uint8)
    output = torch.full((3, 1, 5), 1e9)
    for requests in (1, 2):
        layers = [Checked(each, 5, 0, requests) for each in _bounds(1, requests, flags.device)]
        assert not DirectChecks(layers, flags, torch.float32).check_bounds([output])
    assert flags.tolist() == [0, 0]


def test_a_mode_or_a_transform_hears_of_operations() -> None:
    heard = [hears_no_operations()]
    with TorchDispatchMode():
        heard.append(hears_no_operations())
    with torch.device("cpu"):
        heard.append(hears_no_operations())

    def inside(values: Tensor) -> Tensor:
        heard.append(hears_no_operations())
        return values

    torch.func.vmap(inside)(torch.ones(2))
    torch.jit.trace(inside, torch.ones(2), check_trace=False)
    assert heard == [True, False, False, False, False]


def test_what_no_operation_serves_is_refused() -> None:
    flags = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"no native operations for torch\.float64"):
        DirectChecks([], flags, torch.float64)
    elsewhere = Checked(_bounds(1, 1, torch.device("meta"))[0], 5, 0, 1)
    with pytest.raises(ValueError, match="what is checked against is not on cpu"):
        DirectChecks([elsewhere], flags, torch.float32)
