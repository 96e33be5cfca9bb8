"""Calls, steps and rows that a listener hears in the modes of ``generate``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ft2.forward import Order, tap
from tests.forward.heard import listening
from tests.tiny_models import ARCHITECTURES, tiny_model

_PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
_LEFT_PADDED = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]])
_MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def _generate(model: PreTrainedModel, ids: Tensor | None = _PROMPT, **options: Any) -> Tensor:
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **options}
    return model.generate(ids, **settings)


class _Ends(StoppingCriteria):
    """Ends each row after its own number of tokens."""

    def __init__(self, prompt: int, new_tokens: list[int]) -> None:
        self.lengths = prompt + torch.tensor(new_tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self.lengths <= input_ids.shape[1]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_prefill_is_step_zero_and_each_new_token_one_more(model_type: str) -> None:
    model = tiny_model(model_type)
    with listening(model) as heard:
        _generate(model)
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (0, 3, 1)]
    assert [each.kind for each in heard.started] == ["generate"]
    assert heard.started == heard.finished
    assert [each.is_first_token for each in heard.forwards] == [True, False, False, False]
    assert [each.cached for each in heard.forwards] == [0, 5, 6, 7]


def test_the_result_of_a_call_is_what_generate_returns() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        result = _generate(model)
    assert heard.finished[0].result is result


def test_listening_changes_no_token() -> None:
    model = tiny_model("llama")
    alone = _generate(model)
    with listening(model):
        assert torch.equal(_generate(model), alone)


def test_several_calls_are_counted_from_zero() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        for _ in range(3):
            _generate(model, max_new_tokens=2, min_new_tokens=2)
    assert heard.steps == [(call, step, 1 if step else 5) for call in range(3) for step in (0, 1)]


def test_calls_are_counted_anew_when_listening_begins_again() -> None:
    model = tiny_model("llama")
    for _ in range(2):
        with listening(model) as heard:
            _generate(model)
        assert {call for call, _, _ in heard.steps} == {0}


def test_a_one_token_prompt_has_a_first_token_of_its_own() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        _generate(model, torch.tensor([[5]]))
    assert heard.steps == [(0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 3, 1)]


def test_sampling_is_counted_like_greedy_search() -> None:
    model = tiny_model("llama")
    torch.manual_seed(0)
    with listening(model) as heard:
        _generate(model, do_sample=True, num_return_sequences=2)
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (0, 3, 1)]
    assert {(each.rows, each.call.rows_per_request) for each in heard.forwards} == {(2, 1)}


@pytest.mark.parametrize("do_sample", [False, True])
def test_beams_of_one_prompt_are_rows_of_one_request(do_sample: bool) -> None:
    model = tiny_model("llama")
    torch.manual_seed(0)
    with listening(model) as heard:
        _generate(model, _PROMPT.repeat(2, 1), num_beams=3, do_sample=do_sample)
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (0, 3, 1)]
    assert {(each.rows, each.call.rows_per_request) for each in heard.forwards} == {(6, 3)}
    assert heard.started[0].ended is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": 2},
        {"prefill_chunk_size": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2"])
def test_padding_on_the_left_is_not_real(model_type: str, options: dict[str, Any]) -> None:
    model = tiny_model(model_type)
    with listening(model) as heard:
        _generate(model, _LEFT_PADDED, attention_mask=_MASK, **options)
    first = [each for each in heard.forwards if each.is_first_token]
    assert first[0].real is not None
    # Where no row of a chunk is padded, no mask is told.
    real = [
        torch.ones(each.rows, each.tokens, dtype=torch.bool) if each.real is None else each.real
        for each in first
    ]
    assert torch.equal(torch.cat(real, 1), _MASK.bool())


def test_of_a_prompt_without_padding_no_mask_is_told() -> None:
    model = tiny_model("llama")
    mask = torch.ones_like(_PROMPT)
    with listening(model) as heard:
        _generate(model, attention_mask=mask)
        # Before transformers 5.24 generate hands such a mask on, too.
        model(_PROMPT, attention_mask=mask)
    assert heard.real == [None] * len(heard.forwards)


def test_a_new_token_is_never_padding() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        _generate(model, _LEFT_PADDED, attention_mask=_MASK)
    assert heard.real[1:] == [None, None, None]


@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2"])
def test_a_static_cache_is_counted_like_a_dynamic_one(model_type: str) -> None:
    model = tiny_model(model_type)
    with listening(model) as heard:
        _generate(model, cache_implementation="static")
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (0, 3, 1)]
    assert [each.cached for each in heard.forwards] == [0, 5, 6, 7]


def test_all_chunks_of_a_prefill_are_step_zero_even_one_of_one_token() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        _generate(model, prefill_chunk_size=2)
    assert heard.steps == [(0, 0, 2), (0, 0, 2), (0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 3, 1)]


def test_without_a_cache_each_step_computes_the_whole_text() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        _generate(model, use_cache=False)
    assert heard.steps == [(0, 0, 5), (0, 1, 6), (0, 2, 7), (0, 3, 8)]


def test_without_a_cache_padding_stays_padding_in_later_steps() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        _generate(model, _LEFT_PADDED, attention_mask=_MASK, use_cache=False)
    assert heard.real[2] == [[False, False, True, True, True, True], [True] * 6]


def test_a_prompt_of_embeddings_is_counted_like_one_of_tokens() -> None:
    model = tiny_model("llama")
    with listening(model) as heard:
        _generate(model, None, inputs_embeds=model.get_input_embeddings()(_PROMPT))
    assert heard.steps == [(0, 0, 5), (0, 1, 1), (0, 2, 1), (0, 3, 1)]


@pytest.mark.parametrize("new", [1, 3])
def test_a_call_resumed_from_a_cache_starts_at_step_zero(new: int) -> None:
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    model(_PROMPT, past_key_values=cache)
    longer = torch.cat([_PROMPT, torch.full((1, new), 11)], 1)
    with listening(model) as heard:
        _generate(model, longer, past_key_values=cache)
    assert heard.steps == [(0, 0, new), (0, 1, 1), (0, 2, 1), (0, 3, 1)]
    assert heard.forwards[0].cached == 5


def test_a_padded_call_resumed_from_a_cache_reads_the_end_of_its_mask() -> None:
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)
    model(_LEFT_PADDED, attention_mask=_MASK, past_key_values=cache)
    longer = torch.cat([_LEFT_PADDED, torch.full((2, 2), 11)], 1)
    mask = torch.cat([_MASK, torch.tensor([[1, 1], [0, 1]])], 1)
    with listening(model) as heard:
        _generate(model, longer, attention_mask=mask, past_key_values=cache)
    assert heard.real[0] == [[True, True], [False, True]]


def test_a_call_resumed_from_a_static_cache_starts_at_step_zero() -> None:
    model = tiny_model("llama")
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(_PROMPT, past_key_values=cache)
    longer = torch.cat([_PROMPT, torch.tensor([[11, 12]])], 1)
    with listening(model) as heard:
        _generate(model, longer, past_key_values=cache)
    assert heard.steps == [(0, 0, 2), (0, 1, 1), (0, 2, 1), (0, 3, 1)]


def test_a_round_of_prompt_lookup_is_one_step_however_many_tokens_it_checks() -> None:
    model = tiny_model("llama")
    prompt = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    alone = _generate(model, prompt, prompt_lookup_num_tokens=2, max_new_tokens=8)
    with listening(model) as heard:
        result = _generate(model, prompt, prompt_lookup_num_tokens=2, max_new_tokens=8)
    assert torch.equal(result, alone)
    assert [step for _, step, _ in heard.steps] == list(range(len(heard.steps)))
    assert len(heard.started) == 1
    assert any(tokens > 1 for _, step, tokens in heard.steps if step)


def test_an_assistants_forwards_are_not_the_models() -> None:
    model, assistant = tiny_model("llama"), tiny_model("llama", seed=1)
    with listening(model) as heard:
        _generate(model, assistant_model=assistant)
    assert len(heard.started) == 1
    assert [step for _, step, _ in heard.steps] == list(range(len(heard.steps)))


def test_rows_that_have_ended_are_known_from_the_next_step_on() -> None:
    model = tiny_model("llama")
    ends = StoppingCriteriaList([_Ends(5, [2, 4])])
    with listening(model) as heard:
        _generate(model, _PROMPT.repeat(2, 1), stopping_criteria=ends)
    assert heard.ended == [None, [False, False], [True, False], [True, False]]


def test_a_row_that_has_ended_stays_ended() -> None:
    class EndsOnce(_Ends):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return self.lengths == input_ids.shape[1]

    model = tiny_model("llama")
    ends = StoppingCriteriaList([EndsOnce(5, [1, 4])])
    with listening(model) as heard:
        _generate(model, _PROMPT.repeat(2, 1), stopping_criteria=ends)
    assert heard.ended == [None, [True, False], [True, False], [True, False]]


def test_a_call_knows_that_it_ended_by_its_end_of_sequence_token() -> None:
    model = tiny_model("llama")
    first = int(_generate(model)[0, 5])
    with listening(model) as heard:
        _generate(model, eos_token_id=first, min_new_tokens=None)
    assert len(heard.forwards) == 1
    assert heard.finished[0].ended is not None
    assert heard.finished[0].ended.tolist() == [True]


def test_a_generate_inside_a_generate_is_a_call_of_its_own() -> None:
    model = tiny_model("llama")

    class AsksItself(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            if input_ids.shape[1] == 6:
                _generate(model, torch.tensor([[11, 12]]), max_new_tokens=2, min_new_tokens=2)
            return scores

    with listening(model) as heard:
        _generate(model, logits_processor=LogitsProcessorList([AsksItself()]))
    assert heard.steps == [
        (0, 0, 5),
        (0, 1, 1),
        (1, 0, 2),
        (1, 1, 1),
        (0, 2, 1),
        (0, 3, 1),
    ]
    assert [each.index for each in heard.finished] == [1, 0]


def test_a_forward_inside_a_generate_has_the_padding_of_its_own_mask() -> None:
    model = tiny_model("llama")
    mask = torch.tensor([[0, 1, 1]])

    class LooksAhead(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            if input_ids.shape[1] == 5:
                model(torch.tensor([[0, 11, 12]]), attention_mask=mask)
            return scores

    with listening(model) as heard:
        _generate(model, _PROMPT.repeat(2, 1), logits_processor=LogitsProcessorList([LooksAhead()]))
    assert [(each.rows, each.tokens) for each in heard.forwards[:2]] == [(2, 5), (1, 3)]
    assert heard.real[1] == [[False, True, True]]


def test_hidden_states_and_attentions_are_returned_as_ever() -> None:
    model = tiny_model("llama", attn_implementation="eager")
    options: dict[str, Any] = {
        "return_dict_in_generate": True,
        "output_hidden_states": True,
        "output_attentions": True,
    }
    alone: Any = _generate(model, **options)
    attached = tap(model.model.layers[0].mlp.up_proj, Order.OBSERVE, lambda output: output)
    with listening(model) as heard:
        heard_too: Any = _generate(model, **options)
    attached.remove()
    for name in ("hidden_states", "attentions"):
        for step, same_step in zip(alone[name], heard_too[name], strict=True):
            assert len(step) > 1
            assert all(map(torch.equal, step, same_step))
    assert heard.finished[0].result is heard_too


def test_generate_keeps_its_signature() -> None:
    model = tiny_model("llama")
    names = (
        "generate",
        "_get_stopping_criteria",
        "prepare_inputs_for_generation",
        "forward",
    )
    before = {name: inspect.signature(getattr(model, name)) for name in names}
    with listening(model):
        assert {name: inspect.signature(getattr(model, name)) for name in names} == before


def test_an_unknown_argument_is_refused_as_ever() -> None:
    model = tiny_model("llama")
    with listening(model), pytest.raises(ValueError, match="no_such_argument"):
        _generate(model, no_such_argument=1)
