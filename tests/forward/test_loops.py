"""Calls and steps that a listener hears in loops written by hand."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

import ft2
from ft2.forward import Call, Clock, Listener, cache_argument
from ft2.forward.cache_names import cache_made_by, is_cache
from ft2.layers import unwrap
from tests.forward.heard import Heard, listening
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_model

_PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
_NEXT = torch.tensor([[11]])


def _answer_wrongly(model: PreTrainedModel) -> None:
    model(_PROMPT)
    raise AssertionError("a wrong answer")


def _decode(model: PreTrainedModel, ids: Tensor, steps: int, **inputs: Any) -> Tensor:
    """Greedy decoding with a cache; the new tokens."""
    output = model(ids, use_cache=True, **inputs)
    said = [output.logits[:, -1:].argmax(-1)]
    for _ in range(steps - 1):
        output = model(said[-1], past_key_values=output.past_key_values, use_cache=True)
        said.append(output.logits[:, -1:].argmax(-1))
    return torch.cat(said, 1)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_forwards_that_share_a_cache_are_one_call(model_type: str) -> None:
    model = tiny_model(model_type)
    with listening(model) as heard:
        for _ in range(2):
            _decode(model, _PROMPT, 3)
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (1, 0, 5), (1, 1, 1), (1, 2, 1)]
    assert [each.kind for each in heard.started] == ["loop", "loop"]


@pytest.mark.parametrize("model_type", ["mamba", "minimax", "xlstm"])
def test_forwards_that_share_a_cache_that_tells_no_length_are_one_call(model_type: str) -> None:
    model = small_model(model_type)
    name = cache_argument(model)
    with listening(model) as heard, torch.no_grad():
        for _ in range(2):
            cache = cache_made_by(model(_PROMPT, use_cache=True))
            for _ in range(2):
                assert cache_made_by(model(_NEXT, use_cache=True, **{name: cache})) is cache
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (1, 0, 5), (1, 1, 1), (1, 2, 1)]


def test_a_cache_that_tells_no_length_starts_a_call_with_each_prompt() -> None:
    model = small_model("xlstm")
    name = cache_argument(model)
    with listening(model) as heard, torch.no_grad():
        cache = cache_made_by(model(_PROMPT, use_cache=True))
        for tokens in (_NEXT, _PROMPT, _NEXT):
            model(tokens, use_cache=True, **{name: cache})
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (1, 0, 5), (1, 1, 1)]


@dataclass
class _Cache:
    """One that cannot be a key."""

    layers: list[Tensor]


def test_what_cannot_be_told_from_another_is_no_cache() -> None:
    assert is_cache(DynamicCache())
    assert not any(map(is_cache, [None, (), {}, 3, False, _NEXT, _Cache([])]))


def test_an_empty_cache_of_the_callers_starts_a_call() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        for _ in range(2):
            _decode(model, _PROMPT, 2, past_key_values=DynamicCache(config=model.config))
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (1, 0, 5), (1, 1, 1)]


def test_a_static_cache_that_is_reset_starts_a_call() -> None:
    model = tiny_model("llama")
    cache = StaticCache(config=model.config, max_cache_len=16)
    with listening(model) as heard:
        for _ in range(2):
            _decode(model, _PROMPT, 3, past_key_values=cache)
            cache.reset()
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (1, 0, 5), (1, 1, 1), (1, 2, 1)]


def test_interleaved_loops_are_told_apart_by_their_caches() -> None:
    model = tiny_model("llama")
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    with listening(model) as heard:
        for ids in (_PROMPT, _NEXT, _NEXT):
            for cache in caches:
                model(ids, past_key_values=cache)
    assert heard.steps == [(0, 0, 5), (1, 0, 5), (0, 1, 1), (1, 1, 1), (0, 2, 1), (1, 2, 1)]


def test_each_copy_of_a_prefix_cache_starts_a_call() -> None:
    model = tiny_model("llama")
    prefix = DynamicCache(config=model.config)
    model(_PROMPT, past_key_values=prefix)
    with listening(model) as heard:
        for suffix in ([[11, 12]], [[13]]):
            cache = copy.deepcopy(prefix)
            model(torch.tensor(suffix), past_key_values=cache)
            model(_NEXT, past_key_values=cache)
    assert heard.steps == [(0, 0, 2), (0, 1, 1), (1, 0, 1), (1, 1, 1)]
    assert [each.cached for each in heard.forwards] == [5, 7, 5, 6]


def test_a_copied_cache_starts_a_call_though_its_original_was_heard() -> None:
    model = tiny_model("llama")
    prefix = DynamicCache(config=model.config)
    with listening(model) as heard:
        model(_PROMPT, past_key_values=prefix)
        model(_NEXT, past_key_values=copy.deepcopy(prefix))
        model(_NEXT, past_key_values=prefix)
    assert heard.steps == [(0, 0, 5), (1, 0, 1), (0, 1, 1)]


def test_chunks_of_a_prefill_by_hand_are_one_first_token() -> None:
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    with listening(model) as heard:
        model(_PROMPT[:, :3], past_key_values=cache)
        model(_PROMPT[:, 3:], past_key_values=cache)
        model(_NEXT, past_key_values=cache)
    assert heard.steps == [(0, 0, 3), (0, 0, 2), (0, 1, 1)]


def test_several_tokens_after_the_first_token_are_one_step() -> None:
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    with listening(model) as heard:
        for ids in (_PROMPT, _NEXT, _PROMPT[:, :2]):
            model(ids, past_key_values=cache)
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 2)]


def test_without_a_cache_each_forward_is_a_call_of_its_own() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        for tokens in (3, 4, 5):
            model(_PROMPT[:, :tokens], use_cache=False)
    assert heard.steps == [(0, 0, 3), (1, 0, 4), (2, 0, 5)]


def test_a_request_without_a_cache_is_one_call_with_a_step_for_each_forward() -> None:
    model = tiny_model("llama")
    with listening(model) as heard, ft2.request(model):
        for tokens in (3, 4, 5):
            model(_PROMPT[:, :tokens], use_cache=False)
    assert heard.steps == [(0, 0, 3), (0, 1, 4), (0, 2, 5)]
    assert [each.kind for each in heard.started] == ["request"]
    assert heard.finished == heard.started


def test_a_request_with_a_cache_is_one_call() -> None:
    model = tiny_model("llama")
    with listening(model) as heard, ft2.request(model):
        cache = DynamicCache(config=model.config)
        model(_PROMPT[:, :3], past_key_values=cache)
        model(_PROMPT[:, 3:], past_key_values=cache)
        model(_NEXT, past_key_values=cache)
    assert heard.steps == [(0, 0, 3), (0, 0, 2), (0, 1, 1)]


def test_a_request_that_nobody_listens_to_leaves_no_trace() -> None:
    model = tiny_model("llama")
    kind = type(model)
    with ft2.request(model):
        model(_PROMPT)
    assert type(model) is kind


def test_a_request_takes_a_compiled_model() -> None:
    model = tiny_model("llama")
    compiled: Any = torch.compile(model, backend="eager")
    with listening(model) as heard, ft2.request(compiled):
        model(_PROMPT)
        model(_PROMPT)
    assert heard.steps == [(0, 0, 5), (0, 1, 5)]


def test_a_generate_inside_a_request_is_a_call_of_its_own() -> None:
    model = tiny_model("llama")
    with listening(model) as heard, ft2.request(model):
        model(_PROMPT)
        model.generate(_PROMPT, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        model(_PROMPT)
    assert heard.steps == [(0, 0, 5), (1, 0, 5), (1, 1, 1), (0, 1, 5)]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_loop_past_the_head_is_heard(model_type: str) -> None:
    model = tiny_model(model_type)
    said = _decode(model, _PROMPT, 3)
    with listening(model) as heard:
        cache, ids, again = None, _PROMPT, []
        for _ in range(3):
            output = model.base_model(ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            ids = model.lm_head(output.last_hidden_state[:, -1:]).argmax(-1)
            again.append(ids)
    assert torch.equal(torch.cat(again, 1), said)
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1)]


def test_a_model_without_a_head_is_heard() -> None:
    model = tiny_model("llama").base_model
    with listening(model) as heard:
        cache = model(_PROMPT).past_key_values
        model(_NEXT, past_key_values=cache)
    assert heard.steps == [(0, 0, 5), (0, 1, 1)]


def test_tuples_carry_the_cache_too() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        cache = model(_PROMPT, use_cache=True, return_dict=False)[1]
        model(_NEXT, past_key_values=cache, return_dict=False)
    assert heard.steps == [(0, 0, 5), (0, 1, 1)]


def test_positional_arguments_are_understood() -> None:
    model = tiny_model("llama")
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    cache = DynamicCache(config=model.config)
    with listening(model) as heard:
        model(_PROMPT, mask, None, cache)
        model(_NEXT, torch.ones(1, 6), None, cache)
    assert heard.steps == [(0, 0, 5), (0, 1, 1)]
    assert heard.real == [[[False, True, True, True, True]], None]


def test_embeddings_are_understood() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        model(inputs_embeds=model.get_input_embeddings()(_PROMPT))
    assert heard.steps == [(0, 0, 5)]


def test_padding_is_read_from_a_mask_as_long_as_a_static_cache() -> None:
    model = tiny_model("llama")
    cache = StaticCache(config=model.config, max_cache_len=8)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]])
    with listening(model) as heard:
        model(_PROMPT[:, :3], attention_mask=mask, past_key_values=cache)
        model(_PROMPT[:, 3:], attention_mask=mask, past_key_values=cache)
    assert heard.real == [[[False, True, True]], None]


def test_a_token_that_the_model_puts_behind_a_padded_prompt_is_real() -> None:
    model = small_model("xlm")
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    with listening(model) as heard:
        model.generate(_PROMPT, attention_mask=mask, max_new_tokens=1)
    assert heard.real == [[[False, True, True, True, True, True]]]


def test_inputs_without_a_batch_are_refused_in_one_sentence() -> None:
    model = tiny_model("gpt2")
    with listening(model), pytest.raises(RuntimeError, match=r"shape \(batch, tokens, \.\.\.\)"):
        model(_PROMPT[0])


def test_an_exception_in_a_forward_is_announced_once_and_leaves_the_clock_usable() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        with pytest.raises(IndexError) as caught:
            model(torch.tensor([[5, 999]]))
        model(_PROMPT)
    assert heard.errors == [caught.value]
    assert heard.steps == [(1, 0, 5)]


def test_an_exception_in_a_generate_is_announced_once_a_level() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        with pytest.raises(IndexError) as caught:
            model.generate(torch.tensor([[5, 999]]), max_new_tokens=2)
        model.generate(_PROMPT, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert heard.errors == [caught.value] * 2
    assert heard.steps == [(1, 0, 5), (1, 1, 1)]
    assert [each.index for each in heard.finished] == [1]


def test_an_exception_in_a_forward_of_a_request_is_announced_once() -> None:
    model = tiny_model("llama")
    with listening(model) as heard, pytest.raises(IndexError), ft2.request(model):
        model(torch.tensor([[5, 999]]))
    assert len(heard.errors) == 1


def test_a_failed_assertion_inside_a_request_is_no_failure_of_the_model() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        with pytest.raises(AssertionError, match="a wrong answer"), ft2.request(model):
            _answer_wrongly(model)
        model(_PROMPT)
    assert heard.errors == []
    assert heard.finished == []
    assert heard.steps == [(0, 0, 5), (1, 0, 5)]


def test_an_interrupt_is_announced_to_nobody_and_leaves_the_clock_usable() -> None:
    class Interrupts(Listener):
        def forward_started(self, forward: object) -> None:
            raise KeyboardInterrupt

    model = tiny_model("llama")
    with listening(model) as heard:
        clock = Clock.listen(model, interrupts := Interrupts())
        with pytest.raises(KeyboardInterrupt):
            model(_PROMPT)
        clock.dismiss(model, interrupts)
        model(_PROMPT)
    assert heard.errors == []
    assert heard.steps == [(1, 0, 5)]


def test_generates_in_several_threads_are_separate_calls() -> None:
    model = tiny_model("llama")
    expected = model.generate(_PROMPT, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    results: list[Tensor] = []

    def work() -> None:
        results.append(model.generate(_PROMPT, max_new_tokens=6, min_new_tokens=6, do_sample=False))

    with listening(model) as heard:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(result, expected) for result in results)
    assert len(results) == 4
    assert sorted(heard.steps) == [
        (call, step, 1 if step else 5) for call in range(4) for step in range(6)
    ]


def test_a_request_holds_the_forwards_of_its_own_thread_only() -> None:
    model = tiny_model("llama")
    with listening(model) as heard, ft2.request(model):
        thread = threading.Thread(target=lambda: model(_PROMPT))
        thread.start()
        thread.join()
    assert [each.call.kind for each in heard.forwards] == ["loop"]


def test_listeners_hear_the_same_call_and_leave_one_by_one() -> None:
    model = tiny_model("llama")
    kind = type(model)
    first, second = Heard(), Heard()
    clock = Clock.listen(model, first)
    assert Clock.listen(model, second) is clock
    model(_PROMPT)
    clock.dismiss(model, first)
    assert type(model) is not kind
    model(_PROMPT)
    clock.dismiss(model, second)
    assert type(model) is kind
    model(_PROMPT)
    assert (len(first.forwards), len(second.forwards)) == (1, 2)
    assert first.forwards[0] is second.forwards[0]


def test_a_clock_keeps_neither_cache_nor_model_alive() -> None:
    model = tiny_model("llama")
    with listening(model):
        output = model(_PROMPT)
        cache = weakref.ref(output.past_key_values)
        del output
        gc.collect()
        assert cache() is None
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


class _OfOnesOwn(nn.Module):
    """Its forward names its tokens as it likes, and its ``generate`` knows no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model("llama").base_model

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, None]:
        inputs = {"inputs_embeds" if idx.is_floating_point() else "input_ids": idx}
        return self.model(**inputs, use_cache=False).last_hidden_state, None

    def generate(self, idx: Tensor, steps: int) -> str:
        for _ in range(steps):
            hidden, _ = self(idx)
            idx = torch.cat([idx, hidden[:, -1:].argmax(-1)], 1)
        if idx.shape[1] > 7:
            raise ValueError("too much to say")
        return str(idx.tolist())


def test_a_models_own_generate_is_one_call_with_a_step_for_each_forward() -> None:
    model = _OfOnesOwn()
    said = model.generate(_PROMPT, 2)
    with listening(model) as heard:
        assert model.generate(_PROMPT, 2) == said
        with pytest.raises(ValueError, match="too much to say") as caught:
            model.generate(_PROMPT, 3)
    assert heard.steps == [(0, 0, 5), (0, 1, 6), (1, 0, 5), (1, 1, 6), (1, 2, 7)]
    assert [each.kind for each in heard.finished] == ["request"]
    assert heard.finished[0].result == said
    assert heard.errors == [caught.value]


@pytest.mark.parametrize(
    ("args", "named"), [((_PROMPT,), {}), ((), {"idx": _PROMPT}), ((torch.zeros(1, 5, 16),), {})]
)
def test_tokens_of_another_name_are_the_first_argument(args: Any, named: Any) -> None:
    model = _OfOnesOwn()
    with listening(model) as heard:
        model(*args, **named)
    assert heard.steps == [(0, 0, 5)]


def test_a_forward_without_tokens_says_what_to_pass() -> None:
    model = _OfOnesOwn()
    with listening(model), pytest.raises(RuntimeError, match="or either as the first argument"):
        model(_PROMPT[0])


def test_a_generate_that_is_no_method_of_the_class_is_a_loop() -> None:
    model: Any = _OfOnesOwn()
    model.generate = lambda ids: model(ids)[0]
    with listening(model) as heard:
        model.generate(_PROMPT)
    assert [each.kind for each in heard.started] == ["loop"]


def test_a_layer_run_outside_a_call_is_explained() -> None:
    model = tiny_model("llama")
    clock = Clock.listen(unwrap(model), heard := Heard())
    with pytest.raises(RuntimeError, match=r"call the model itself, model\(\.\.\.\)"):
        _ = clock.forward
    clock.dismiss(model, heard)


def test_two_calls_of_the_same_index_are_two_calls() -> None:
    first, second = Call(index=0, kind="loop"), Call(index=0, kind="loop")
    assert first != second
    assert len({first, second}) == 2
