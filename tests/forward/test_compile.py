"""Models compiled before anything is attached: heard and tapped, or refused aloud."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

import ft2
from ft2.forward import Clock, Forward, Listener, Order, tap
from tests.compiling import compiling
from tests.forward.heard import listening
from tests.tiny_models import tiny_model

_PROMPT = torch.tensor([[5, 6, 7, 8]])
_LAYER = "model.layers.0.mlp.up_proj"
_FAULT = ft2.Fault(call=0, step=0, layer=_LAYER, row=0, position=2, neuron=3, bits=(30,))


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def _model() -> PreTrainedModel:
    # One block: compiling more of them takes longer and shows no more.
    return tiny_model("llama", num_hidden_layers=1)


def _its_forward(model: PreTrainedModel) -> Callable[[Tensor], Any]:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def _wrapped(model: PreTrainedModel) -> Callable[[Tensor], Any]:
    return torch.compile(model, backend="aot_eager")


def _in_place(model: PreTrainedModel) -> Callable[[Tensor], Any]:
    model.compile(backend="eager")
    return model


def _its_blocks(model: PreTrainedModel) -> Callable[[Tensor], Any]:
    for block in model.model.layers:
        block.compile(backend="eager")
    return model


def _a_function_around_it(model: PreTrainedModel) -> Callable[[Tensor], Any]:
    return torch.compile(lambda ids: model(ids), backend="eager")


_WAYS = [_its_forward, _wrapped, _in_place, _its_blocks, _a_function_around_it]


@pytest.mark.parametrize("compiled", _WAYS)
def test_a_fault_lands_in_a_model_compiled_and_run_before(
    compiled: Callable[[PreTrainedModel], Callable[[Tensor], Any]],
) -> None:
    plain = _model()
    expected = plain(_PROMPT).logits
    with ft2.inject(plain, _FAULT):
        faulty = plain(_PROMPT).logits
    model = _model()
    run = compiled(model)
    torch.testing.assert_close(run(_PROMPT).logits, expected)
    with listening(model) as heard, ft2.inject(model, _FAULT) as injection:
        found = run(_PROMPT).logits
    assert injection.landed
    assert heard.steps == [(0, 0, 4)]
    torch.testing.assert_close(found, faulty)
    torch.testing.assert_close(run(_PROMPT).logits, expected)


def test_faults_land_beyond_the_number_of_times_a_frame_is_compiled() -> None:
    model = _model()
    run = _its_forward(model)
    run(_PROMPT)
    limit = torch._dynamo.config.recompile_limit
    landed = []
    for _ in range(limit + 2):
        with ft2.inject(model, _FAULT) as injection:
            run(_PROMPT)
        landed.append(injection.landed)
    assert landed == [True] * (limit + 2)


def test_a_model_compiled_while_something_was_attached_is_clean_afterwards() -> None:
    model = _model()
    expected = model(_PROMPT).logits
    attached = tap(model.get_submodule(_LAYER), Order.INJECT, torch.zeros_like)
    with listening(model):
        run = torch.compile(model, backend="eager")
        assert not torch.equal(run(_PROMPT).logits, expected)
    attached.remove()
    torch.testing.assert_close(run(_PROMPT).logits, expected)


def test_a_static_cache_that_generate_compiles_is_heard_step_by_step() -> None:
    model = _model()
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}

    def generate() -> Tensor:
        return model.generate(_PROMPT, **compiling(), **options)

    expected = model.generate(_PROMPT, **options)
    counters.clear()
    assert torch.equal(generate(), expected)
    assert counters["stats"]["unique_graphs"] > 0
    for step in (0, 3):
        fault = ft2.Fault(call=0, step=step, layer=_LAYER, row=0, position=0, neuron=3, bits=(30,))
        with listening(model) as heard, ft2.inject(model, fault) as injection:
            generate()
        assert injection.landed
        assert [step for _, step, _ in heard.steps] == [0, 1, 2, 3, 4]
    assert torch.equal(generate(), expected)


def test_a_call_that_generate_compiled_while_something_listened_works_afterwards() -> None:
    model = _model()
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(_PROMPT, **options)
    options |= compiling()
    for _ in range(2):
        with listening(model) as heard:
            assert torch.equal(model.generate(_PROMPT, **options), expected)
        assert [step for _, step, _ in heard.steps] == [0, 1, 2, 3]
        assert torch.equal(model.generate(_PROMPT, **options), expected)


def test_what_listens_is_never_compiled() -> None:
    class Asks(Listener):
        compiling: list[bool] = []

        def forward_started(self, forward: object) -> None:
            self.compiling.append(torch.compiler.is_compiling())

        def forward_finished(self, forward: object, output: Any) -> None:
            self.compiling.append(torch.compiler.is_compiling())

    model = _model()
    run = torch.compile(model, backend="eager")
    clock = Clock.listen(model, asks := Asks())
    run(_PROMPT)
    clock.dismiss(model, asks)
    assert asks.compiling == [False] * 2


@pytest.mark.parametrize("compiled", [_its_forward, _wrapped])
def test_counting_steps_compiles_nothing_anew(
    compiled: Callable[[PreTrainedModel], Callable[[Tensor], Any]],
) -> None:
    model = _model()
    run = compiled(model)
    started: list[Any] = []
    with listening(model) as heard, ft2.request(model):
        run(_PROMPT)
        callback_handler.register_start_callback(started.append)
        try:
            for _ in range(6):
                run(_PROMPT)
        finally:
            callback_handler.remove_start_callback(started.append)
    assert [step for _, step, _ in heard.steps] == list(range(7))
    assert started == []


def test_a_compiled_call_that_cannot_be_heard_is_refused_aloud() -> None:
    model = _model().base_model
    run = torch.compile(model, backend="eager")
    expected = run(_PROMPT).last_hidden_state
    fault = ft2.Fault(
        call=0, step=0, layer="layers.0.mlp.up_proj", row=0, position=0, neuron=0, bits=(0,)
    )
    with (
        ft2.inject(model, fault) as injection,
        pytest.raises(RuntimeError, match="a layer of the model ran outside a call"),
    ):
        run(_PROMPT)
    assert not injection.fired
    torch.testing.assert_close(run(_PROMPT).last_hidden_state, expected)


def test_a_layer_run_by_itself_is_refused_aloud() -> None:
    model = _model()
    with (
        ft2.inject(model, _FAULT),
        pytest.raises(RuntimeError, match="a layer of the model ran outside a call"),
    ):
        model.get_submodule(_LAYER)(torch.zeros(1, 1, 16))


def test_a_model_compiled_in_one_graph_is_refused_rather_than_unheard() -> None:
    model = _model()
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    expected = model(_PROMPT).logits
    with ft2.inject(model, _FAULT) as injection, pytest.raises(torch._dynamo.exc.Unsupported):
        model(_PROMPT)
    assert not injection.fired
    torch.testing.assert_close(model(_PROMPT).logits, expected)


def test_an_opt_that_was_compiled_and_run_before_is_still_protected() -> None:
    model = tiny_model("opt")
    ids = torch.tensor([[1, 5, 9, 11]])
    compiled = torch.compile(model, backend="eager")
    expected = compiled(ids).logits
    with ft2.protect(model) as protection:
        assert torch.equal(compiled(ids).logits, expected)
    assert protection.counts == [0]


def _classes(model: Any) -> list[type]:
    return [type(module) for module in model.modules()]


def _compiled_steps(model: Any, run: Any, steps: int = 3) -> Tensor:
    """Prompt and steps in one request, the prompt by the model and the others by `run`."""
    with torch.no_grad(), ft2.request(model):
        output = model(_PROMPT, use_cache=True)
        logits = [output.logits[:, -1]]
        for _ in range(steps):
            output = run(
                logits[-1].argmax(-1, keepdim=True), past_key_values=output.past_key_values
            )
            logits.append(output.logits[:, -1])
    return torch.cat(logits)


def test_modules_wear_for_compiled_code_what_it_has_nothing_to_check_of() -> None:
    model: Any = _model()
    plain = _classes(model)
    expected = _compiled_steps(model, model)
    protection = ft2.protect(model)
    eager = _classes(model)
    run = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(_compiled_steps(model, run), expected)
        inside = model.model.layers[0]
        # Of spared modules compiled code sees their own class, of others a forward.
        assert type(inside.input_layernorm) in plain
        assert type(inside.mlp.up_proj) not in (*plain, *eager)
        assert "forward" in vars(type(inside.mlp.up_proj))
    torch.testing.assert_close(_compiled_steps(model, model), expected)
    assert _classes(model) == eager
    torch.testing.assert_close(_compiled_steps(model, run), expected)
    protection.remove()
    assert _classes(model) == plain
    assert protection.left_first_token


def test_a_fault_between_compiled_steps_is_clipped_by_the_same_protection() -> None:
    model: Any = _model()
    fault = ft2.Fault(call=0, step=2, layer=_LAYER, row=0, position=0, neuron=3, bits=(30,))
    run = torch.compile(model, backend="eager")
    with ft2.protect(model) as protection:
        clean = _compiled_steps(model, run)
        with ft2.inject(model, fault) as injection:
            _compiled_steps(model, run)
        assert injection.landed
        torch.testing.assert_close(_compiled_steps(model, run), clean)
    assert protection.counts[1] >= protection.counts[0] + 1
    assert protection.counts[2] == protection.counts[0]


def test_a_hook_that_comes_after_compiling_is_heard_by_the_next_request() -> None:
    model: Any = _model()
    run = torch.compile(model, backend="eager")
    with ft2.protect(model):
        plain = _compiled_steps(model, run)
        handle = model.model.layers[0].mlp.up_proj.register_forward_hook(
            lambda module, args, output: output * 0
        )
        hooked = _compiled_steps(model, run)
        eager = _compiled_steps(model, model)
        handle.remove()
        torch.testing.assert_close(hooked, eager)
        assert not torch.allclose(hooked, plain)
        torch.testing.assert_close(_compiled_steps(model, run), plain)


def test_where_compiled_code_is_left_layers_are_protected_one_by_one() -> None:
    model: Any = _model()
    mlp = model.model.layers[0].mlp
    forward = type(mlp).forward

    def breaking(hidden: Tensor) -> Any:
        torch._dynamo.graph_break()
        return forward(mlp, hidden)

    mlp.forward = torch.compiler.disable(breaking)
    with torch.no_grad():
        mlp.up_proj.weight[3] = torch.nan
    with ft2.protect(model) as protection:
        expected = _compiled_steps(model, model)
        run = torch.compile(model, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(_compiled_steps(model, run), expected)
    assert protection.counts[0] == protection.counts[1] == protection.counts[2] > 0
    assert torch.isfinite(expected).all()


@pytest.mark.parametrize("way", ["around", "in place"])
def test_what_is_put_into_a_layer_before_compiling_comes_before_the_protection(way: str) -> None:
    counts = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model: Any = _model()
        up, down = model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.down_proj
        plain = up.forward
        # As accelerate does it.
        up.forward = lambda hidden, plain=plain: plain(hidden) * (1 if hidden.shape[1] > 1 else 1e6)
        down.register_forward_hook(lambda module, args, output: output * 1e6)
        run = model
        if compiled and way == "around":
            run = torch.compile(model, backend="eager")
        elif compiled:
            model.compile(backend="eager")
        with ft2.protect(model) as protection:
            _compiled_steps(model, run)
        counts.append(protection.counts)
    assert counts[0] == counts[1] != [0]


def test_a_hook_between_requests_that_are_compiled_whole_comes_before_the_protection() -> None:
    model: Any = _model()
    run = torch.compile(model, backend="eager")
    down = model.model.layers[0].mlp.down_proj

    def answer() -> None:
        with torch.no_grad(), ft2.request(model):
            output = run(_PROMPT, use_cache=True)
            for _ in range(3):
                run(_PROMPT[:, :1], past_key_values=output.past_key_values)

    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False), ft2.protect(model) as found:
        answer()
        down.register_forward_hook(
            lambda module, args, output: output * (1 if output.shape[1] > 1 else 1e6)
        )
        answer()
    assert found.counts[1] > found.counts[0]


def test_another_forward_of_a_layers_class_is_the_one_that_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = _model()
    run = torch.compile(model, backend="eager")
    with ft2.protect(model, scale=1e6):
        _compiled_steps(model, run)
    plain = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, hidden: plain(self, hidden) * 2)
    torch._dynamo.reset()
    expected = _compiled_steps(model, model)
    with ft2.protect(model, scale=1e6):
        torch.testing.assert_close(_compiled_steps(model, run), expected)
        torch.testing.assert_close(_compiled_steps(model, model), expected)


def test_a_layer_called_alone_leaves_compiled_code_as_it_was() -> None:
    model: Any = _model()
    run = torch.compile(model, backend="eager")
    up = model.model.layers[0].mlp.up_proj
    with ft2.protect(model):
        _compiled_steps(model, run)
        worn = type(up)
        with pytest.raises(RuntimeError, match="outside a call"):
            up(torch.zeros(1, 1, model.config.hidden_size))
        _compiled_steps(model, run)
        assert type(up) is worn


def _eager_and_compiled() -> Iterator[tuple[Any, Any]]:
    """Give a model and what runs it, twice: itself, and code compiled for another one like it."""
    for compiled in (False, True):
        torch._dynamo.reset()
        model = _model()
        yield model, torch.compile(model, backend="eager") if compiled else model


def test_a_forward_put_into_a_layer_between_compiled_steps_comes_before_the_protection() -> None:
    found = []
    for model, run in _eager_and_compiled():
        up = model.model.layers[0].mlp.up_proj
        with ft2.protect(model) as protection, torch.no_grad(), ft2.request(model):
            output = model(_PROMPT, use_cache=True)
            for step in range(6):
                if step == 4:
                    plain = up.forward
                    up.forward = lambda hidden, plain=plain: plain(hidden) * 1e6
                output = run(_PROMPT[:, :1], past_key_values=output.past_key_values)
        found.append((output.logits, protection.counts))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] != [0]


def test_a_forward_written_past_a_layer_comes_before_the_protection() -> None:
    # A module tells of forwards that are assigned to it, and not of these.
    plain = torch.nn.Linear.forward
    found = []
    for model, run in _eager_and_compiled():
        up = model.model.layers[0].mlp.up_proj

        def large(hidden: Tensor, up: torch.nn.Linear = up) -> Tensor:
            return plain(up, hidden) * (1 if hidden.shape[1] > 1 else 1e6)

        with ft2.protect(model) as protection, torch.no_grad():
            for own in ({}, {"forward": large}):
                vars(up).update(own)
                with ft2.request(model):
                    output = run(_PROMPT, use_cache=True)
                    for _ in range(3):
                        output = run(_PROMPT[:, :1], past_key_values=output.past_key_values)
        found.append((output.logits, protection.counts))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert found[0][1][1] > 0


def test_a_forward_written_past_a_layer_between_compiled_steps_is_found_after_the_next() -> None:
    model: Any = _model()
    up = model.model.layers[0].mlp.up_proj
    run = torch.compile(model, backend="eager")
    with ft2.protect(model), torch.no_grad(), ft2.request(model):
        output = model(_PROMPT, use_cache=True)
        # What it wears where it is called past compiled code.
        worn, seen = type(up), []
        for step in range(6):
            if step == 3:
                vars(up)["forward"] = lambda hidden, plain=up.forward: plain(hidden)
            output = run(_PROMPT[:, :1], past_key_values=output.past_key_values)
            seen.append(type(up) is worn)
    assert seen == [False, False, False, False, True, True]


def test_a_compiled_forward_waits_for_that_of_another_thread() -> None:
    # Compiled before it is protected: the code goes past the model's own call.
    model: Any = _model()
    run = torch.compile(model, backend="eager")
    expected = model(_PROMPT).logits
    is_inside, may_go_on, is_done = (threading.Event() for _ in range(3))
    found: list[Tensor] = []

    class Waits(Listener):
        def forward_started(self, forward: Forward) -> None:
            if forward.tokens == 1:
                is_inside.set()
                assert may_go_on.wait(60)

    def answer() -> None:
        found.append(run(_PROMPT).logits)
        is_done.set()

    with ft2.protect(model):
        listener = Waits()
        clock = Clock.listen(model, listener)
        other = threading.Thread(target=model, args=(_PROMPT[:, :1],))
        compiled = threading.Thread(target=answer)
        other.start()
        assert is_inside.wait(60)
        compiled.start()
        # Time enough to compile it.
        assert not is_done.wait(3)
        may_go_on.set()
        other.join()
        compiled.join()
        clock.dismiss(model, listener)
    torch.testing.assert_close(found[0], expected)
