"""A module's parts are found where they are, also those that were exchanged or taken away."""

from __future__ import annotations

import copy
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ft2.forward import Lane, tap_in_lane


class _Block(nn.Module):
    """Has parts of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_parameter("shift", None)
        self.register_module("nothing", None)
        self.register_buffer("steps", torch.zeros(4))
        self.plain = 3

    def forward(self, hidden: Tensor) -> Any:
        return self.inner(hidden) * self.scale


class _Idle(Lane):
    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        return output

    traced = eager

    def finish(self) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.fixture
def block() -> Generator[Any, None, None]:
    """A block that is spared, with shortcuts to its parts."""
    model = nn.Sequential(_Block())
    taps = tap_in_lane(model, [], _Idle(), [], ["0", "0.inner"])
    assert isinstance(vars(type(model[0]))["inner"], property)
    yield model[0]
    for each in taps:
        each.remove()
    assert type(model[0]) is _Block


def test_parts_are_those_that_the_module_holds(block: Any) -> None:
    assert block.inner is block._modules["inner"]
    assert block.scale is block._parameters["scale"]
    assert block.steps is block._buffers["steps"]
    assert (block.shift, block.nothing, block.plain) == (None, None, 3)
    assert not hasattr(block, "missing")


@pytest.mark.parametrize("past_setattr", [False, True])
def test_an_exchanged_part_is_the_one_that_computes(block: Any, past_setattr: bool) -> None:
    other, scale = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 2.0))
    if past_setattr:
        block._modules["inner"], block._parameters["scale"] = other, scale
    else:
        block.inner, block.scale = other, scale
    hidden = torch.ones(4)
    assert torch.equal(block(hidden), other(hidden) * 2)


def test_what_takes_a_parts_place_is_found_there(block: Any) -> None:
    del block.scale
    with pytest.raises(AttributeError, match="'_Block' object has no attribute 'scale'"):
        _ = block.scale
    with pytest.raises(AttributeError, match="scale"):
        del block.scale
    # As torch.nn.utils.weight_norm leaves a weight: computed anew, and no parameter.
    block.scale = torch.full((4,), 5.0)
    assert "scale" in vars(block)
    assert block.scale[0] == 5
    block.register_buffer("shift_of_it", torch.ones(1))
    del block.scale
    block.register_buffer("scale", torch.full((4,), 7.0))
    assert block.scale[0] == 7


def test_a_parametrized_part_is_computed(block: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 2

    parametrize.register_parametrization(block.inner, "weight", Doubled())
    plain = block.inner.parametrizations.weight.original
    assert torch.equal(block.inner.weight, plain * 2)
    parametrize.remove_parametrizations(block.inner, "weight", leave_parametrized=False)


def test_a_copy_has_parts_of_its_own(block: Any) -> None:
    twin = copy.deepcopy(block)
    assert type(twin) is _Block
    assert twin.inner is not block.inner
    assert torch.equal(twin.scale, block.scale)


def test_what_a_class_defines_itself_is_left_to_it() -> None:
    class Named(_Block):
        @property
        def gain(self) -> Any:
            return 10

    model: Any = nn.Sequential(Named())
    model[0]._parameters["gain"] = nn.Parameter(torch.ones(1))
    taps = tap_in_lane(model, [], _Idle(), [], ["0"])
    assert model[0].gain == 10
    taps[0].remove()


def test_a_class_that_looks_for_attributes_in_its_own_way_goes_on_doing_so() -> None:
    class Scaling(nn.Linear):
        def __getattr__(self, name: str) -> Any:
            found: Any = super().__getattr__(name)
            return found * 0.5 if name == "weight" else found

    model: Any = nn.Sequential(Scaling(4, 4))
    # Linear's own initialization fills the halved copy that it is shown.
    nn.init.uniform_(model[0]._parameters["weight"])
    taps = tap_in_lane(model, [], _Idle(), [], ["0"])
    assert torch.equal(model[0].weight, model[0]._parameters["weight"] * 0.5)
    taps[0].remove()


def test_what_stands_in_a_modules_own_dictionary_comes_first(block: Any) -> None:
    vars(block)["inner"] = lambda hidden: hidden * 3
    assert torch.equal(block(torch.ones(4)), torch.full((4,), 3.0))
    del vars(block)["inner"]
    assert block.inner is block._modules["inner"]


def test_torchscript_compiles_a_spared_module(block: Any) -> None:
    scripted = torch.jit.script(block)
    assert torch.equal(scripted(torch.ones(4)), block(torch.ones(4)))
