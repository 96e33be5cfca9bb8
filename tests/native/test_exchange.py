"""Tensors that C reads past torch are restricted as by the operations, or refused untouched."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from ft2.native import Operations
from ft2.native.direct import DirectRestriction, RestrictionAt
from ft2.native.exchange import exchange
from tests.native.patterns import DTYPES, Layer, bits, every_pattern, layers, random_patterns


def _bounds(requests: int, device: torch.device) -> Tensor:
    return torch.tensor([[-2.0], [3.0]], device=device).repeat(1, requests)


def _as_it_lies(values: Tensor) -> Tensor:
    """Return a copy with the same strides."""
    shape, strides = values.shape, values.stride()
    copy = torch.empty_strided(shape, strides, dtype=values.dtype, device=values.device)
    return copy.copy_(values)


def _both_ways(
    operations: Operations, values: Tensor, requests: int, counted: Tensor | None
) -> tuple[bool, bool]:
    """Whether each call past torch was made; all that was made gave what the operation gives."""
    device = values.device
    direct = DirectRestriction(device.type)
    done = []
    for past_torch, operation in (
        (direct.restrict, operations.restrict_at),
        (direct.record, operations.record_at),
    ):
        ours, theirs = (_as_it_lies(values) for _ in range(2))
        found, expected = (_bounds(requests, device) for _ in range(2))
        ours_counted, theirs_counted = torch.zeros(2, requests, dtype=torch.int64, device=device)
        at = RestrictionAt(found, ours_counted, counted)
        other = RestrictionAt(expected, theirs_counted, counted)
        done.append(past_torch(ours, at.address))
        if done[-1]:
            operation(theirs, other.address)
        assert torch.equal(bits(ours), bits(theirs))
        assert torch.equal(found, expected)
        assert torch.equal(ours_counted, theirs_counted)
    return done[0], done[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_pattern_is_treated_as_by_the_operations(
    operations: Operations, device: torch.device, dtype: torch.dtype
) -> None:
    assert _both_ways(operations, every_pattern(dtype).to(device), 2, None) == (True, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 33), (6, 1, 33), (2, 3, 1, 33), (33,), (0, 33), (6, 0)])
def test_any_number_of_dimensions_is_served(
    operations: Operations, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    values = random_patterns(dtype, shape, 5).to(device)
    assert _both_ways(operations, values, 1, None) == (True, True)


def test_only_counted_requests_are_counted(operations: Operations, device: torch.device) -> None:
    values = random_patterns(torch.float16, (4, 3, 33), 7).to(device)
    counted = torch.tensor([[True], [False], [False], [True]], device=device)
    assert _both_ways(operations, values, 4, counted) == (True, True)


@given(layers())
def test_what_lies_apart_is_refused_and_all_else_served(
    operations: Operations, layer: Layer
) -> None:
    done = _both_ways(operations, layer.view, layer.requests, None)
    assert done == (layer.view.is_contiguous(),) * 2


def test_a_part_of_a_storage_is_served_where_it_begins(operations: Operations) -> None:
    storage = torch.full((3, 4), 9.0)
    count = torch.zeros(1, dtype=torch.int64)
    at = RestrictionAt(_bounds(1, storage.device), count, None)
    assert DirectRestriction("cpu").restrict(storage[1:2], at.address)
    assert storage.tolist() == [[9.0] * 4, [3.0] * 4, [9.0] * 4]
    assert count.tolist() == [4]


def test_a_long_prompt_is_left_to_a_call_that_lets_other_threads_run(
    operations: Operations,
) -> None:
    at = RestrictionAt(_bounds(1, torch.device("cpu")), torch.zeros(1, dtype=torch.int64), None)
    direct = DirectRestriction("cpu")
    assert direct.record(torch.zeros(2**8, 2**12), at.address)
    assert not direct.record(torch.zeros(2**8 + 1, 2**12), at.address)


_REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "another type": lambda values: values.double(),
    "whole numbers": lambda values: values.to(torch.int32),
    "not adjacent": lambda values: values.mT,
    "one number": lambda values: values[0, 0],
    "tokens that two requests do not share": lambda values: values[:3],
    "repeated numbers": lambda values: values[:1].expand(4, 6),
    "on no device": lambda values: values.to("meta"),
    "sparse": lambda values: values.to_sparse(),
}


@pytest.mark.parametrize("change", _REFUSED.values(), ids=list(_REFUSED))
def test_what_is_refused_stays_as_it_is_and_leaves_no_error(
    operations: Operations, change: Callable[[Tensor], Any]
) -> None:
    values = torch.full((4, 6), 9.0)
    count = torch.zeros(2, dtype=torch.int64)
    at = RestrictionAt(_bounds(2, values.device), count, None)
    direct = DirectRestriction("cpu")
    for past_torch in (direct.restrict, direct.record):
        assert past_torch(change(values), at.address) is False
    assert values.unique().tolist() == [9.0]
    assert count.tolist() == [0, 0]
    assert direct.restrict(values, at.address) is True
    assert values.unique().tolist() == [3.0]


_VALUES = torch.full((4, 6), 9.0)


@pytest.mark.parametrize(
    "arguments",
    [(), (_VALUES,), (_VALUES, "an address"), (_VALUES, 0), (_VALUES, 4, 5)],
    ids=["nothing", "a tensor alone", "a text", "no address", "one too many"],
)
def test_a_call_without_a_tensor_and_an_address_is_refused(
    operations: Operations, arguments: tuple[Any, ...]
) -> None:
    assert DirectRestriction("cpu").restrict(*arguments) is False
    assert _VALUES.unique().tolist() == [9.0]


def test_a_torch_without_the_interface_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exchange() is not None
    look = exchange.__wrapped__
    new_capsule = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
    )(("PyCapsule_New", ctypes.pythonapi))
    later = (ctypes.c_uint32 * 2)(2, 0)
    capsule = new_capsule(ctypes.addressof(later), b"dlpack_exchange_api", None)
    monkeypatch.setattr(Tensor, "__dlpack_c_exchange_api__", capsule)
    assert look() is None
    monkeypatch.delattr(Tensor, "__dlpack_c_exchange_api__")
    assert look() is None


_AGREEMENT = """
#include <cstddef>
#define DLDevice TheirDevice
#define DLDataType TheirDataType
#define DLTensor TheirTensor
#include <ATen/dlpack.h>
#undef DLDevice
#undef DLDataType
#undef DLTensor
#include "exchange.h"

#define AGREE(ours, our, theirs, their)                     \
  static_assert(offsetof(ours, our) == offsetof(theirs, their)); \
  static_assert(sizeof(ours::our) == sizeof(theirs::their));
#define AGREE_IN_SIZE(ours, theirs) static_assert(sizeof(ours) == sizeof(theirs));

AGREE_IN_SIZE(DLDevice, TheirDevice)
AGREE(DLDevice, type, TheirDevice, device_type)
AGREE(DLDevice, index, TheirDevice, device_id)
AGREE_IN_SIZE(DLDataType, TheirDataType)
AGREE(DLDataType, code, TheirDataType, code)
AGREE(DLDataType, bits, TheirDataType, bits)
AGREE(DLDataType, lanes, TheirDataType, lanes)
AGREE_IN_SIZE(DLTensor, TheirTensor)
AGREE(DLTensor, data, TheirTensor, data)
AGREE(DLTensor, device, TheirTensor, device)
AGREE(DLTensor, dimensions, TheirTensor, ndim)
AGREE(DLTensor, type, TheirTensor, dtype)
AGREE(DLTensor, sizes, TheirTensor, shape)
AGREE(DLTensor, strides, TheirTensor, strides)
AGREE(DLTensor, byte_offset, TheirTensor, byte_offset)
AGREE(DLPackExchange, tensor_from_object, DLPackExchangeAPI, dltensor_from_py_object_no_sync)
AGREE_IN_SIZE(DLPackExchange, DLPackExchangeAPI)
static_assert(offsetof(DLPackExchangeAPI, header.version.major) == 0);
static_assert(DLPACK_MAJOR_VERSION == 1);
static_assert(kDLCPU == 1 && kDLCUDA == 2 && kDLFloat == 2 && kDLBfloat == 4);
"""


def test_declarations_agree_with_dlpack(agrees_with_torch: Callable[..., None]) -> None:
    agrees_with_torch(_AGREEMENT)
