"""Modules in a lane compute what they compute outside of it, whatever was done to them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ft2.forward import Lane, Order, Tap, hears_nothing, tap, tap_in_lane

_HIDDEN = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))


class _Doubling(Lane):
    """Doubles what each module puts out, and notes what came by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Tensor]] = []
        self.finished = 0

    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        self.seen.append((seat, hidden))
        return output * 2

    def traced(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        return output * 2 + seat

    def finish(self) -> None:
        self.finished += 1

    def end(self) -> None:
        pass


def _model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.LayerNorm(8))


@contextmanager
def _in_lane(model: nn.Module, *names: str) -> Generator[_Doubling, None, None]:
    lane = _Doubling()
    running: list[Lane] = []
    taps: list[Tap] = tap_in_lane(model, names, lane, running)
    assert running == [lane]
    lane.is_direct = hears_nothing()
    yield lane
    for each in taps:
        each.remove()
    assert running == []


class _Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 3


def _load(layer: Any) -> None:
    layer.load_state_dict({name: each + 1 for name, each in layer.state_dict().items()})


def _merge(layer: Any) -> None:
    layer.weight.data += torch.ones(8, 2) @ torch.ones(2, 8)


def _exchange(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight * 5)


def _tie(layer: Any) -> None:
    layer.weight = nn.Linear(8, 8).requires_grad_(False).weight


def _plain_tensor(layer: Any) -> None:
    weight = layer.weight.detach() * 2
    del layer.weight
    layer.weight = weight


def _patch(layer: Any) -> None:
    layer.forward = lambda hidden: hidden - 1


def _hook(layer: Any) -> None:
    layer.register_forward_hook(lambda module, args, output: output + 7)


def _prehook(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))


def _keyword_hook(layer: Any) -> None:
    layer.register_forward_hook(lambda module, args, kwargs, output: -output, with_kwargs=True)


def _compile(layer: Any) -> None:
    layer.compile(backend="eager")


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        *(_load, _merge, _exchange, _tie, _plain_tensor),
        *(_patch, _hook, _prehook, _keyword_hook, _compile),
    ],
)
def test_a_layer_that_changed_while_in_the_lane_computes_what_it_computes_outside(
    change: Callable[[Any], None],
) -> None:
    model = _model()
    with _in_lane(model, "0", "1") as lane:
        model[0](_HIDDEN)
        torch.manual_seed(5)
        change(model[0])
        found = model[0](_HIDDEN)
        assert [seat for seat, _ in lane.seen] == [0, 0]
    expected = model[0](_HIDDEN)
    assert torch.equal(found, expected * 2)


@torch.no_grad()
def test_a_layer_of_another_type_or_device_is_followed() -> None:
    model = _model()
    with _in_lane(model, "0") as lane:
        model.to(torch.bfloat16)
        assert model[0](_HIDDEN.bfloat16()).dtype == torch.bfloat16
        model.to("meta")
        assert model[0](_HIDDEN.to("meta")).is_meta
        assert len(lane.seen) == 2


@torch.no_grad()
def test_a_layer_parametrized_in_the_lane_leaves_it_rather_than_computing_with_the_old_weight() -> (
    None
):
    model = _model()
    expected = nn.functional.linear(_HIDDEN, model[1].weight * 3)
    with _in_lane(model, "1"):
        parametrize.register_parametrization(model[1], "weight", _Scaled())
        assert torch.equal(model[1](_HIDDEN), expected * 2)
    assert torch.equal(model[1](_HIDDEN), expected)


@torch.no_grad()
def test_a_global_hook_is_heard(request: pytest.FixtureRequest) -> None:
    model = _model()
    heard: list[nn.Module] = []

    def hear(module: nn.Module, args: Any, output: Any) -> None:
        heard.append(module)

    handle = nn.modules.module.register_module_forward_hook(hear)
    request.addfinalizer(handle.remove)
    with _in_lane(model, "0") as lane:
        assert not lane.is_direct
        model[0](_HIDDEN)
    assert heard == [model[0]]


def test_what_exports_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        assert hears_nothing()
        monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
        assert not hears_nothing()


def test_gradients_are_recorded_in_a_lane() -> None:
    model = _model()
    with torch.enable_grad(), _in_lane(model, "0") as lane:
        assert not lane.is_direct
        model[0](_HIDDEN).sum().backward()
    assert model[0].weight.grad is not None


@torch.no_grad()
def test_a_layer_called_by_keyword_gives_the_lane_its_input() -> None:
    model = _model()
    with _in_lane(model, "0", "1") as lane:
        model[1](input=_HIDDEN)
        assert lane.seen[0][0] == 1
        assert lane.seen[0][1] is _HIDDEN


@torch.no_grad()
def test_a_fault_stands_before_the_lane_and_leaves_the_other_layers_in_it() -> None:
    model = _model()
    plain = model[0](_HIDDEN)
    with _in_lane(model, "0", "1"):
        struck = tap(model[0], Order.INJECT, lambda output: output + 100)
        assert torch.equal(model[0](_HIDDEN), (plain + 100) * 2)
        struck.remove()
        assert torch.equal(model[0](_HIDDEN), plain * 2)
    assert type(model[0]) is nn.Linear


@torch.no_grad()
def test_two_lanes_on_one_layer_run_one_after_the_other() -> None:
    model = _model()
    plain = model[0](_HIDDEN)
    with _in_lane(model, "0"):
        with _in_lane(model, "0"):
            assert torch.equal(model[0](_HIDDEN), plain * 4)
        assert torch.equal(model[0](_HIDDEN), plain * 2)


@torch.no_grad()
def test_models_of_one_kind_have_lanes_of_their_own() -> None:
    one, other = _model(), _model()
    with _in_lane(one, "0") as first, _in_lane(other, "0") as second:
        one[0](_HIDDEN)
        assert (len(first.seen), len(second.seen)) == (1, 0)
        other[0](_HIDDEN)
        assert (len(first.seen), len(second.seen)) == (1, 1)
        copied = copy.deepcopy(one)
        copied[0](_HIDDEN)
        assert type(copied[0]) is nn.Linear
        assert len(first.seen) == 1


@torch.no_grad()
def test_compiled_code_follows_what_is_attached_and_stays_one_graph() -> None:
    torch._dynamo.reset()
    model = _model()
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda hidden: model[1](model[0](hidden)), backend=count)
    plain = compiled(_HIDDEN)
    for _ in range(3):
        with _in_lane(model, "0", "1"):
            inner = nn.functional.linear(_HIDDEN, model[0].weight, model[0].bias) * 2
            expected = nn.functional.linear(inner, model[1].weight) * 2 + 1
            torch.testing.assert_close(compiled(_HIDDEN), expected)
        assert torch.equal(compiled(_HIDDEN), plain)
    assert len(graphs) == 2, "attaching the same again compiled again"
    torch._dynamo.reset()


def test_compiled_code_looks_for_no_module_or_weight_among_the_seats() -> None:
    torch._dynamo.reset()
    model = _model()
    guarded: list[str] = []

    def note(entries: Any) -> list[bool]:
        guarded.extend(entry.name for entry in entries)
        return [True for _ in entries]

    options: Any = {"guard_filter_fn": note}
    with _in_lane(model, "0", "1"):
        # Taking a module out of a dictionary's keys takes a walk through them, at every call.
        torch.compile(lambda hidden: model(hidden), backend="eager", options=options)(_HIDDEN)
    assert any("seats" in name for name in guarded)
    assert not [name for name in guarded if "keys(" in name]
    torch._dynamo.reset()


def test_a_module_that_is_gone_leaves_its_seat_to_nobody() -> None:
    model = _model()
    with _in_lane(model, "0"):
        occupied = next(iter(type(model[0]).__call__.__globals__["seats"]))
        seats = type(model[0]).__call__.__globals__["seats"]
    assert occupied == id(model[0])
    model[0] = nn.Linear(8, 8)
    gc.collect()
    assert occupied not in seats
