"""Steps that differ in nothing but their number are announced in few words, and counted alike."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import ft2
from ft2.forward import Clock, Forward, Listener
from tests.forward.heard import Heard, listening
from tests.tiny_models import tiny_model

_PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
_TOKEN = torch.tensor([[11]])


class _Brief(Heard):
    """Has said before what it does before steps that repeat: notes their numbers."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self.clock = clock
        self.repeated: list[tuple[int, int]] = []

    def forward_repeats(self, forward: Forward) -> Callable[[], None]:
        def note() -> None:
            assert self.clock is not None
            now = self.clock.forward
            self.repeated.append((now.step, now.cached))

        return note


def _briefly(model: Any) -> _Brief:
    brief = _Brief()
    brief.clock = Clock.listen(model, brief)
    return brief


def _decode(model: Any, steps: int, prompt: Tensor = _PROMPT, token: Tensor = _TOKEN) -> Any:
    """Compute a prompt and some steps, and return their cache."""
    cache = model(prompt, use_cache=True).past_key_values
    for _ in range(steps):
        model(token, past_key_values=cache)
    return cache


def test_generate_announces_two_steps_and_repeats_the_others() -> None:
    model = tiny_model("llama")
    brief = _briefly(model)
    plain = tiny_model("llama").generate(_PROMPT, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(_PROMPT, max_new_tokens=6, do_sample=False), plain)
    assert brief.steps == [(0, 0, 5), (0, 1, 1)]
    assert brief.repeated == [(2, 6), (3, 7), (4, 8), (5, 9)]
    brief.clock.dismiss(model, brief)  # type: ignore[union-attr]


def test_who_needs_each_step_in_full_has_it_told_to_all() -> None:
    model = tiny_model("llama")
    brief = _briefly(model)
    with listening(model) as heard:
        model.generate(_PROMPT, max_new_tokens=4, do_sample=False)
    assert heard.steps == brief.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (0, 3, 1)]
    assert brief.repeated == []


def test_who_comes_in_between_hears_the_next_step() -> None:
    model = tiny_model("llama")
    brief = _briefly(model)
    with ft2.request(model):
        cache = _decode(model, 2)
        with listening(model) as heard:
            model(_TOKEN, past_key_values=cache)
        for _ in range(2):
            model(_TOKEN, past_key_values=cache)
    assert heard.steps == [(0, 3, 1)]
    assert brief.steps == [(0, 0, 5), (0, 1, 1), (0, 3, 1), (0, 4, 1)]
    assert [step for step, _ in brief.repeated] == [2, 5]


_OTHERS: dict[str, Callable[[Any, DynamicCache], Any]] = {
    "several tokens": lambda model, cache: model(_PROMPT, past_key_values=cache),
    "embeddings": lambda model, cache: model(
        inputs_embeds=model.get_input_embeddings()(_TOKEN), past_key_values=cache
    ),
    "compiled": lambda model, cache: torch.compile(model, backend="eager")(
        _TOKEN, past_key_values=cache
    ),
    "positional": lambda model, cache: model(_TOKEN, None, None, cache),
}


@pytest.mark.parametrize("other", _OTHERS.values(), ids=list(_OTHERS))
def test_a_forward_of_another_kind_is_told_in_full(
    other: Callable[[Any, DynamicCache], Any],
) -> None:
    model = tiny_model("llama")
    brief = _briefly(model)
    with ft2.request(model):
        cache = _decode(model, 2)
        other(model, cache)
    assert [step for _, step, _ in brief.steps] == [0, 1, 3]
    assert [step for step, _ in brief.repeated] == [2]


def test_another_batch_in_the_same_request_is_told_in_full() -> None:
    model = tiny_model("llama")
    brief = _briefly(model)
    with ft2.request(model):
        for rows in (1, 2):
            _decode(model, 3, _PROMPT.expand(rows, -1), _TOKEN.expand(rows, -1))
    assert [each.rows for each in brief.forwards] == [1, 1, 2, 2]


def test_an_error_in_a_repeated_step_is_told_and_the_next_one_in_full() -> None:
    model = tiny_model("llama")
    brief = _briefly(model)
    with ft2.request(model):
        cache = _decode(model, 2)
        with pytest.raises(IndexError):
            model(_TOKEN + 10_000, past_key_values=cache)
        model(_TOKEN, past_key_values=cache)
    assert [type(each) for each in brief.errors] == [IndexError]
    assert [step for _, step, _ in brief.steps] == [0, 1, 4]


def test_a_layer_outside_of_repeated_steps_is_outside_of_any_forward() -> None:
    model: Any = tiny_model("llama")
    with ft2.protect(model), ft2.request(model):
        _decode(model, 3)
        with pytest.raises(RuntimeError, match="outside a call that ft2 can see"):
            model.model.layers[0].mlp.up_proj(torch.zeros(1, 1, model.config.hidden_size))


def test_no_cache_is_held_between_steps() -> None:
    model = tiny_model("llama")
    brief = _briefly(model)
    with ft2.request(model):
        cache = _decode(model, 3)
        brief.forwards.clear()
        gone = weakref.ref(cache)
        del cache
        gc.collect()
        assert gone() is None


class _Holding(Listener):
    """Notes in each forward which of the preparations for further steps there still are."""

    def __init__(self, model: Any) -> None:
        self.held: list[weakref.ref[Callable[[], None]]] = []
        self.alive: list[int] = []
        self._clock = Clock.listen(model, self)
        model.model.layers[0].register_forward_pre_hook(self._note)

    def _note(self, module: Any, given: Any) -> None:
        self.alive.append(sum(each() is not None for each in self.held))

    def forward_repeats(self, forward: Forward) -> Callable[[], None]:
        def prepare() -> None:
            pass

        self.held.append(weakref.ref(prepare))
        return prepare


def test_what_is_held_for_a_next_step_is_gone_when_another_forward_comes() -> None:
    model = tiny_model("llama")
    holding = _Holding(model)
    with ft2.request(model):
        cache = _decode(model, 3)
        model(_PROMPT, past_key_values=cache)
    assert holding.alive == [0, 0, 1, 1, 0]


def test_what_is_held_for_a_next_step_is_gone_when_an_error_is_kept() -> None:
    model = tiny_model("llama")
    holding = _Holding(model)
    with ft2.request(model):
        cache = _decode(model, 3)
        with pytest.raises(IndexError) as error:
            model(_TOKEN + 10_000, past_key_values=cache)
        assert error.traceback
        assert [each() for each in holding.held] == [None]


def test_a_protected_answer_and_its_counts_are_the_same_step_by_step() -> None:
    # Bounds of scale 1 are left all the time.
    model: Any = tiny_model("llama")

    class InFull(Listener):
        """Has each step announced in full."""

    found: list[tuple[Tensor, list[int]]] = []
    for in_full in (True, False):
        with ft2.protect(model, scale=1.0) as protection:
            listener = InFull()
            clock = Clock.listen(model, listener) if in_full else None
            said = model.generate(_PROMPT, max_new_tokens=8, do_sample=False)
            if clock is not None:
                clock.dismiss(model, listener)
        found.append((said, protection.counts))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] != [0]
