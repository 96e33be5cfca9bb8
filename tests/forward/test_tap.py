"""Taps: what they see and change, in which order, and that they leave no trace."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from ft2.forward import Order, tap
from ft2.layers import projections
from tests.forward.heard import listening
from tests.tiny_models import ARCHITECTURES, tiny_model

_PROMPT = torch.tensor([[5, 6, 7, 8, 9]])


def _unchanged(output: Tensor) -> Tensor:
    return output


@contextmanager
def _attached(model: PreTrainedModel) -> Generator[None, None, None]:
    """Listen to the model and tap each of its projections."""
    with listening(model):
        taps = [
            tap(model.get_submodule(each.name), Order.OBSERVE, _unchanged)
            for each in projections(model)
        ]
        yield
        for each in taps:
            each.remove()


def _classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def _variables(model: nn.Module) -> list[dict[str, Any]]:
    return [dict(vars(module)) for module in model.modules()]


def test_a_tap_sees_what_the_module_puts_out_and_replaces_it() -> None:
    linear = nn.Linear(3, 2)
    seen: list[Tensor] = []

    def double(output: Tensor) -> Tensor:
        seen.append(output)
        return output * 2

    x = torch.ones(1, 3)
    plain = linear(x)
    attached = tap(linear, Order.INJECT, double)
    assert torch.equal(linear(x), plain * 2)
    assert torch.equal(seen[0], plain)
    attached.remove()
    assert torch.equal(linear(x), plain)


@pytest.mark.parametrize("attached_in", list(itertools.permutations(Order)), ids=str)
def test_taps_run_in_order_whichever_was_attached_first(attached_in: tuple[Order, ...]) -> None:
    linear = nn.Linear(3, 2)
    ran: list[Order] = []

    def note(order: Order) -> Callable[[Tensor], Tensor]:
        def transform(output: Tensor) -> Tensor:
            ran.append(order)
            return output

        return transform

    taps = [tap(linear, order, note(order)) for order in attached_in]
    linear(torch.ones(1, 3))
    assert ran == [Order.OBSERVE, Order.INJECT, Order.PROTECT]
    for each in taps:
        each.remove()


@pytest.mark.parametrize("removed", [0, 1])
def test_removing_one_tap_keeps_the_other(removed: int) -> None:
    linear = nn.Linear(3, 2)
    x = torch.ones(1, 3)
    plain = linear(x)
    factors = (2, 3)
    taps = [
        tap(linear, Order.INJECT, lambda output: output * factors[0]),
        tap(linear, Order.PROTECT, lambda output: output * factors[1]),
    ]
    taps[removed].remove()
    assert torch.equal(linear(x), plain * factors[1 - removed])
    taps[1 - removed].remove()
    assert type(linear) is nn.Linear
    assert torch.equal(linear(x), plain)


def test_removing_a_tap_twice_does_no_harm() -> None:
    linear = nn.Linear(3, 2)
    first = tap(linear, Order.INJECT, _unchanged)
    second = tap(linear, Order.INJECT, _unchanged)
    first.remove()
    first.remove()
    assert type(linear) is not nn.Linear
    second.remove()
    assert type(linear) is nn.Linear


def test_a_tap_on_one_module_is_on_no_other_of_its_class() -> None:
    tapped, other = nn.Linear(3, 2), nn.Linear(3, 2)
    x = torch.ones(1, 3)
    plain = other(x)
    attached = tap(tapped, Order.INJECT, torch.zeros_like)
    assert torch.equal(other(x), plain)
    attached.remove()


def test_forward_hooks_run_before_a_tap() -> None:
    linear = nn.Linear(3, 2)
    linear.register_forward_hook(lambda module, inputs, output: output * 0 + 1)
    attached = tap(linear, Order.PROTECT, lambda output: output + 1)
    assert linear(torch.ones(1, 3)).tolist() == [[2, 2]]
    attached.remove()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_a_model_computes_is_the_same_with_taps(model_type: str) -> None:
    model = tiny_model(model_type)
    plain = model(_PROMPT).logits
    with _attached(model):
        assert torch.equal(model(_PROMPT).logits, plain)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_model_is_what_it_was_once_all_is_removed(model_type: str) -> None:
    model = tiny_model(model_type)
    classes, variables = _classes(model), _variables(model)
    with _attached(model):
        model.generate(_PROMPT, max_new_tokens=2)
        assert _classes(model) != classes
    assert _classes(model) == classes
    assert all(map(lambda now, then: now.items() == then.items(), _variables(model), variables))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_model_looks_the_same_with_taps(model_type: str) -> None:
    model = tiny_model(model_type)
    kind, text, classes = type(model), repr(model), _classes(model)
    state, variables = model.state_dict(), _variables(model)
    with _attached(model):
        assert repr(model) == text
        assert isinstance(model, kind)
        assert all(map(isinstance, model.modules(), classes))
        assert list(model.state_dict()) == list(state)
        assert _variables(model) == variables
        names = [(each.__module__, each.__qualname__, each.__doc__) for each in _classes(model)]
    assert names == [(each.__module__, each.__qualname__, each.__doc__) for each in classes]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_has_the_models_own_classes_and_no_taps(
    duplicate: Callable[[PreTrainedModel], PreTrainedModel],
) -> None:
    model = tiny_model("llama")
    plain, classes = model(_PROMPT).logits, _classes(model)
    up = model.model.layers[0].mlp.up_proj
    attached = tap(up, Order.INJECT, torch.zeros_like)
    with listening(model) as heard:
        twin = duplicate(model)
        assert _classes(twin)[0] is classes[0]
        twin(_PROMPT)
        loud = model(_PROMPT).logits
    # A shallow copy shares the decoder stack, and that is still listened to.
    assert len(heard.forwards) == (2 if duplicate is copy.copy else 1)
    assert not torch.equal(loud, plain)
    attached.remove()
    assert torch.equal(twin(_PROMPT).logits, plain)
    assert _classes(twin) == classes


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_names_the_models_own_class(protocol: int) -> None:
    linear = nn.Linear(3, 2)
    attached = tap(linear, Order.INJECT, _unchanged)
    reduced = linear.__reduce_ex__(protocol)
    attached.remove()
    assert isinstance(reduced, tuple)
    assert reduced[1][0] is nn.Linear
    rebuilt = reduced[0](*reduced[1])
    rebuilt.__setstate__(reduced[2])
    assert type(rebuilt) is nn.Linear
    assert torch.equal(rebuilt.weight, linear.weight)


def test_a_model_saved_with_taps_loads_equal_to_the_one_without(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with _attached(model):
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_state_dict_can_be_loaded_into_a_tapped_model() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    with _attached(model):
        model.load_state_dict(other.state_dict())
    assert torch.equal(model(_PROMPT).logits, other(_PROMPT).logits)


def test_a_model_can_change_its_dtype_while_it_is_tapped() -> None:
    model = tiny_model("llama")
    seen: list[torch.dtype] = []

    def note(output: Tensor) -> Tensor:
        seen.append(output.dtype)
        return output

    attached = tap(model.model.layers[0].mlp.up_proj, Order.OBSERVE, note)
    with listening(model) as heard:
        assert model.to(torch.bfloat16) is model
        model(_PROMPT)
        model.to(torch.float64)
        model(_PROMPT)
    attached.remove()
    assert seen == [torch.bfloat16, torch.float64]
    assert len(heard.forwards) == 2


def test_gradients_flow_through_a_tap() -> None:
    linear = nn.Linear(3, 2)
    attached = tap(linear, Order.INJECT, lambda output: output * 2)
    with torch.enable_grad():
        linear(torch.ones(1, 3)).sum().backward()
    attached.remove()
    assert linear.weight.grad is not None
    assert linear.weight.grad.tolist() == [[2, 2, 2]] * 2


def test_a_module_whose_class_changes_while_nothing_is_tapped_keeps_the_new_one() -> None:
    linear = nn.Linear(3, 2)
    tap(linear, Order.INJECT, _unchanged).remove()
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    kind = type(linear)
    assert kind is not nn.Linear
    attached = tap(linear, Order.INJECT, torch.zeros_like)
    assert not linear(torch.ones(1, 3)).any()
    attached.remove()
    assert type(linear) is kind


def test_a_tap_is_removed_although_the_class_changed_and_another_came() -> None:
    linear = nn.Linear(3, 2)
    x = torch.ones(1, 3)
    plain = linear(x)
    first = tap(linear, Order.INJECT, lambda output: output * 2)
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    second = tap(linear, Order.INJECT, lambda output: output * 3)
    assert torch.equal(linear(x), plain * 6)
    first.remove()
    assert torch.equal(linear(x), plain * 3)
    second.remove()
    assert torch.equal(linear(x), plain)


def test_a_model_whose_class_changes_while_nobody_listens_keeps_the_new_one() -> None:
    model = tiny_model("llama")
    with listening(model):
        model(_PROMPT)
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "own": 1})
    with listening(model) as heard:
        assert model.own == 1
        model(_PROMPT)
    assert len(heard.forwards) == 1
    assert model.own == 1


def test_a_tap_keeps_no_module_alive() -> None:
    linear = nn.Linear(3, 2)
    tap(linear, Order.INJECT, _unchanged).remove()
    alive = weakref.ref(linear)
    del linear
    gc.collect()
    assert alive() is None
