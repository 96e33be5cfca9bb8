"""A pending output is restricted before anything sees it, and counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ft2 import native
from ft2.protection.pending import Pending, Restrictor

pytestmark = pytest.mark.skipif(
    not native.load().cpu.active, reason=f"plain torch only: {native.load().cpu.detail}"
)

_VALUES = [0.5, -9.0, 9.0, torch.nan]
_RESTRICTED = torch.tensor([[0.5, -1.0, 2.0, 0.0]])
_OTHER = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

_USES: dict[str, Callable[[Tensor], Any]] = {
    "plus": lambda x: x + _OTHER,
    "plus, from the right": lambda x: _OTHER + x,
    "times": lambda x: x * _OTHER,
    "times, from the right": lambda x: _OTHER * x,
    "plus a number": lambda x: x + 1,
    "a number plus": lambda x: 1 + x,
    "times a number": lambda x: 2 * x,
    "plus a row": lambda x: x + _OTHER[0],
    "plus another type": lambda x: x + _OTHER.double(),
    "plus a parameter": lambda x: nn.Parameter(_OTHER) + x,
    "plus itself": lambda x: x + x,
    "in place": lambda x: x.add_(_OTHER),
    "added to in place": lambda x: _OTHER.clone().add_(x),
    "out": lambda x: torch.add(x, _OTHER, out=torch.empty(1, 4)),
    "minus": lambda x: _OTHER - x,
    "view": lambda x: x.view(4, 1),
    "index": lambda x: x[0, 1:],
    "in a list": lambda x: torch.cat([_OTHER, x]),
    "by keyword": lambda x: torch.add(input=_OTHER, other=x),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False) + _OTHER,
    "dropout, then a view": lambda x: nn.Dropout(0.5).eval()(x).view(-1),
    "linear": lambda x: functional.linear(x, torch.eye(4)),
    "as numbers": lambda x: x.tolist(),
    "copied": lambda x: x.clone(),
    "detached": lambda x: x.detach(),
    "stacked": lambda x: torch.stack((x, _OTHER)),
    "written": lambda x: torch.zeros(2, 4).copy_(x),
    "indexed into": lambda x: torch.zeros(3, 4).index_copy_(0, torch.tensor([1]), x),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, _OTHER),
}


def _restrictor(corrected: Tensor) -> Restrictor:
    operations = native.operations()
    assert operations is not None
    return Restrictor(operations, torch.tensor([[-1.0], [2.0]]), corrected, None)


@torch.no_grad()
@pytest.mark.parametrize("use", _USES.values(), ids=list(_USES))
def test_every_use_sees_restricted_values_and_each_is_counted_once(
    use: Callable[[Tensor], Any],
) -> None:
    corrected = torch.zeros(1, dtype=torch.int64)
    output = torch.tensor([_VALUES])
    expected = use(_RESTRICTED.clone())
    found = use(Pending.wait(output, _restrictor(corrected)))
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert corrected.tolist() == [3]
    assert type(output) is Tensor
    # Used again, by whoever kept it, it is what the first use saw.
    assert output.sum() == (_RESTRICTED if use is not _USES["in place"] else expected).sum()
    assert corrected.tolist() == [3]


@torch.no_grad()
def test_two_pending_outputs_may_be_added() -> None:
    corrected = torch.zeros(1, dtype=torch.int64)
    outputs = [torch.tensor([_VALUES]) for _ in range(2)]
    one, other = (Pending.wait(each, _restrictor(corrected)) for each in outputs)
    assert torch.equal(one + other, 2 * _RESTRICTED)
    assert corrected.tolist() == [6]
    assert [type(each) for each in outputs] == [Tensor, Tensor]


@torch.no_grad()
def test_a_layer_whose_outputs_go_elsewhere_stops_waiting() -> None:
    restrictor = _restrictor(torch.zeros(1, dtype=torch.int64))
    Pending.wait(torch.tensor([_VALUES]), restrictor) + _OTHER
    assert restrictor.waits
    Pending.wait(torch.tensor([_VALUES]), restrictor).view(-1)
    assert not restrictor.waits


@torch.no_grad()
def test_an_error_of_the_sum_itself_is_the_models() -> None:
    restrictor = _restrictor(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="must match the size"):
        Pending.wait(torch.tensor([_VALUES]), restrictor) + torch.ones(3)


def test_shape_and_type_can_be_asked_of_an_output_that_waits() -> None:
    output = Pending.wait(torch.tensor([_VALUES]), _restrictor(torch.zeros(1, dtype=torch.int64)))
    assert isinstance(output, Tensor)
    assert output.shape == (1, 4)
    assert output.dtype == torch.float32
    assert repr(output).startswith("tensor(")


@torch.no_grad()
def test_an_output_settles_without_a_trace() -> None:
    output = Pending.wait(torch.tensor([_VALUES]), _restrictor(torch.zeros(1, dtype=torch.int64)))
    output + _OTHER
    assert vars(output) == {}
