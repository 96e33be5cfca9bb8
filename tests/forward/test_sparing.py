"""Modules that are spared the ways of a call compute, and are heard, as without."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.modeling_layers import GradientCheckpointingLayer

import ft2
from ft2.forward import Lane, Order, hears_nothing, sparable, tap, tap_in_lane
from tests.protection.watch import generate, prompts
from tests.tiny_models import tiny_model

_HIDDEN = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1))


class _Idle(Lane):
    """Has nothing."""

    def eager(self, seat: int, hidden: Tensor, output: Tensor) -> Tensor:
        raise AssertionError("no module has a number")

    traced = eager

    def finish(self) -> None:
        pass

    def end(self) -> None:
        pass


def _model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Bilinear(8, 8, 8))


@contextmanager
def _spared(model: nn.Module, *names: str, is_direct: bool = True) -> Generator[None, None, None]:
    lane = _Idle()
    taps = tap_in_lane(model, [], lane, [], names)
    lane.is_direct = is_direct and hears_nothing()
    yield
    for each in taps:
        each.remove()


_CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda layer: None,
    "a hook": lambda layer: layer.register_forward_hook(lambda module, args, output: output + 7),
    "a hook before": lambda layer: layer.register_forward_pre_hook(
        lambda module, args: (args[0] * 0.5,)
    ),
    "a hook of keywords": lambda layer: layer.register_forward_hook(
        lambda module, args, kwargs, output: -output, with_kwargs=True
    ),
    "a forward of its own": lambda layer: setattr(layer, "forward", lambda hidden: hidden - 1),
    "compiled": lambda layer: layer.compile(backend="eager"),
    "another weight": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 5)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ["0", "1"])
@pytest.mark.parametrize("change", _CHANGES.values(), ids=list(_CHANGES))
def test_a_spared_module_computes_what_it_computes_otherwise(
    name: str, change: Callable[[Any], Any]
) -> None:
    model = _model()
    layer: Any = model.get_submodule(name)
    with _spared(model, "0", "1"):
        layer(_HIDDEN)
        change(layer)
        found = layer(_HIDDEN)
    assert type(layer) in (nn.Linear, nn.LayerNorm)
    assert torch.equal(layer(_HIDDEN), found)


@torch.no_grad()
def test_arguments_of_all_kinds_arrive() -> None:
    model = _model()
    plain = model[2](_HIDDEN, _HIDDEN), model[0](input=_HIDDEN)
    with _spared(model, "0", "2"):
        assert torch.equal(model[2](_HIDDEN, input2=_HIDDEN), plain[0])
        assert torch.equal(model[0](input=_HIDDEN), plain[1])


@torch.no_grad()
def test_a_call_is_shortened_only_while_the_lane_is_direct(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    ways = nn.Module._call_impl

    def note(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.append(type(module).__name__)
        return ways(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "_call_impl", note)
    model = _model()
    with _spared(model, "0", "1"):
        model[1](model[0](_HIDDEN))
        assert called == []
    with _spared(model, "0", "1", is_direct=False):
        model[1](model[0](_HIDDEN))
        assert called == ["Linear", "LayerNorm"]


@torch.no_grad()
def test_a_fault_strikes_a_spared_layer() -> None:
    model = _model()
    plain = model[0](_HIDDEN)
    with _spared(model, "0"):
        struck = tap(model[0], Order.INJECT, lambda output: output + 100)
        assert torch.equal(model[0](_HIDDEN), plain + 100)
        struck.remove()
        assert torch.equal(model[0](_HIDDEN), plain)


def test_a_protected_models_calls_are_announced_and_its_classes_return() -> None:
    model: Any = tiny_model("llama")
    classes = {name: type(module) for name, module in model.named_modules()}
    spared = sparable(model, ["model.layers.0.mlp.up_proj"])
    assert {"", "model", "model.layers", "model.layers.0.mlp.up_proj"}.isdisjoint(spared)
    assert {"model.norm", "model.layers.0.mlp", "model.layers.0.self_attn.q_proj"} <= set(spared)
    heard: list[str] = []
    norm = model.model.norm
    norm.register_forward_hook(lambda module, args, output: heard.append(type(module).__name__))
    with ft2.protect(model):
        assert all(isinstance(model.get_submodule(name), kind) for name, kind in classes.items())
        generate(model, prompts(1), max_new_tokens=3)
    assert heard == [classes["model.norm"].__name__] * 3
    assert {name: type(module) for name, module in model.named_modules()} == classes


def test_what_a_class_does_to_each_made_of_it_is_not_done_to_a_disguise() -> None:
    class Wrapping(nn.Module):
        def __init_subclass__(cls) -> None:
            plain = cls.forward

            def forward(self: Any, hidden: Tensor) -> Any:
                return plain(self, hidden) + 1

            cls.forward = forward

    class Layer(Wrapping):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden * 2

    model = nn.Sequential(Layer())
    with torch.no_grad(), _spared(model, "0"):
        assert type(model[0]) is not Layer
        assert type(model[0]).forward is Layer.forward
        assert torch.equal(model[0](_HIDDEN), _HIDDEN * 2 + 1)


class _Negating(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Any:
        return self.inner(hidden)

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        return -super()._call_impl(*args, **kwargs)


class _Refusing(nn.LayerNorm):
    def __init_subclass__(cls) -> None:
        raise TypeError("this class is final")


class _Constant(nn.Module):
    def forward(self) -> Tensor:
        return torch.ones(1)


class _Halving(nn.Module):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * 0.5


class _Block(GradientCheckpointingLayer):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * 3


class _HalvingBlock(_Block, _Halving):
    """Its own call stands behind the one of transformers' layers."""


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_that_may_be_computed_twice_in_training_is_spared_outside_of_it(
    training: bool,
) -> None:
    model = nn.Sequential(_Block(), _HalvingBlock()).train(training)
    assert sparable(model, []) == ["0"]
    with _spared(model, "0"):
        torch.testing.assert_close(model(_HIDDEN), _HIDDEN * 4.5)


@torch.no_grad()
def test_modules_of_ways_of_their_own_keep_them() -> None:
    model = nn.Sequential(_Negating(nn.Linear(8, 8)), _Refusing(8), _Constant())
    assert sparable(model, []) == ["0.inner", "2"]
    plain = model[0](_HIDDEN)
    with _spared(model, "0.inner", "2"), _spared(model, "2"):
        assert torch.equal(model[0](_HIDDEN), plain)
        assert torch.equal(model[2](), torch.ones(1))


@torch.no_grad()
def test_a_bias_parametrized_while_spared_is_the_one_that_counts() -> None:
    class Shifted(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return bias + 1

    model = _model()
    plain = model[0](_HIDDEN)
    with _spared(model, "0"):
        parametrize.register_parametrization(model[0], "bias", Shifted())
        torch.testing.assert_close(model[0](_HIDDEN), plain + 1)


def test_a_model_inside_of_a_protected_one_keeps_its_own_clock() -> None:
    inner: Any = tiny_model("llama")

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = inner
            self.second = tiny_model("llama")

        def forward(self, input_ids: Tensor) -> Any:
            return self.second(input_ids=input_ids, past_key_values=self.first(input_ids)[1])

    outer = Outer()
    kind = type(inner)
    assert not {"first", "first.model", "second", "second.model"} & set(sparable(outer, []))
    with ft2.protect(inner) as protection:
        assert not {"first", "first.model"} & set(sparable(outer, []))
        generate(inner, prompts(1), max_new_tokens=3)
        assert protection.left_first_token
    assert type(inner) is kind


@torch.no_grad()
def test_another_linear_in_torchs_place_is_the_one_that_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = tiny_model("llama")
    ids = prompts(1)
    plain = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *args: plain(*args) * 1.5)
    expected = model(ids).logits
    with ft2.protect(model, scale=1e6):
        torch.testing.assert_close(model(ids).logits, expected)
