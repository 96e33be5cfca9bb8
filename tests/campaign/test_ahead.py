"""Trials that are computed ahead of the runs that ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from ft2.campaign import Ahead, Batched, GoldenCalls, Run, RunSpec
from ft2.campaign.batch_size import fitting_rows, fixed_rows
from ft2.campaign.prompt import Prompt
from ft2.campaign.row_batch import RowBatch
from ft2.faults import Draw, Fault, fault_model
from tests.tiny_models import tiny_model

PROMPT = torch.tensor([[1, 5, 9, 11]])


def ask(model: Any, prompt: torch.Tensor = PROMPT, **changes: Any) -> list[int]:
    asked = {"max_new_tokens": 6, "do_sample": False, **changes}
    said = model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)
    return said[0].tolist()


def golden(model: Any, body: Callable[[Any], object] = ask) -> tuple[GoldenCalls, list[Fault]]:
    run = Run(RunSpec(record=True))
    run.attach(model)
    body(model)
    run.detach()
    assert run.golden is not None
    space = run.golden.space
    draws = (Draw(0, "ahead", trial) for trial in range(30))
    faults = [space.sample(draw, fault_model("exp")) for draw in draws]
    return GoldenCalls(run.asked, run.calls, run.golden.outputs), faults


def compute(ahead: Ahead, calls: GoldenCalls, faults: list[Fault]) -> list[Batched | str]:
    found = ahead.compute({0: calls}, [(trial, 0, each) for trial, each in enumerate(faults)])
    return [found[trial] for trial in range(len(faults))]


def said(found: list[Batched | str]) -> list[list[int]]:
    assert all(isinstance(each, Batched) for each in found)
    return [each.continuation.said for each in found if isinstance(each, Batched)]


def test_memory_that_runs_out_halves_the_batch_and_loses_no_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    calls, faults = golden(model)
    expected = said(compute(Ahead("ft2", rows=32), calls, faults))
    advance = RowBatch.advance

    def too_large(batch: RowBatch) -> list[int]:
        if batch.cache.rows > 12:
            raise MemoryError
        return advance(batch)

    monkeypatch.setattr(RowBatch, "advance", too_large)
    found = compute(Ahead("ft2", rows=32), calls, faults)
    assert said(found) == expected
    assert {each.batch for each in found if isinstance(each, Batched)} == {8}


@pytest.mark.parametrize(("rows", "instead"), [(32, 16), (16, 8), (8, 1), (4, 1)])
def test_in_half_precision_memory_that_runs_out_asks_for_a_smaller_batch(
    monkeypatch: pytest.MonkeyPatch, rows: int, instead: int
) -> None:
    model = tiny_model(dtype=torch.float16)
    calls, faults = golden(model)

    def too_large(batch: RowBatch) -> list[int]:
        raise MemoryError

    monkeypatch.setattr(RowBatch, "advance", too_large)
    ahead = Ahead("ft2", rows=rows)
    assert set(compute(ahead, calls, faults)) == {"memory ran out for a batch"}
    assert ahead.problem is not None
    assert f"use --ft2-batch={instead}." in ahead.problem


def test_golden_runs_that_are_kept_make_room_before_a_batch_is_halved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(dtype=torch.float16)
    first, faults = golden(model)
    second, _ = golden(model, lambda model: ask(model, torch.tensor([[7, 3, 9]])))
    kept = Ahead("none", rows=32)
    compute(kept, first, faults)
    advance = RowBatch.advance

    def crowded(batch: RowBatch) -> list[int]:
        if kept._engines._kept:
            raise MemoryError
        return advance(batch)

    monkeypatch.setattr(RowBatch, "advance", crowded)
    ahead = Ahead("ft2", rows=32)
    found = compute(ahead, second, [fault for fault in faults if fault.position < 3])
    assert said(found)
    assert ahead.problem is None
    assert {each.batch for each in found if isinstance(each, Batched)} == {32}


def test_an_exception_in_a_batch_leaves_its_trials_to_run_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    calls, faults = golden(model)

    def fail(batch: RowBatch) -> list[int]:
        raise ArithmeticError

    monkeypatch.setattr(RowBatch, "advance", fail)
    assert set(compute(Ahead("ft2", rows=32), calls, faults)) == {
        "its batch raised ArithmeticError"
    }


def test_a_row_of_a_padded_call_is_computed_as_in_the_call() -> None:
    padded = torch.tensor([[0, 0, 1, 5, 9], [7, 7, 7, 3, 2]])

    def both(model: Any) -> Any:
        mask = (padded > 0).long()
        return model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)

    model = tiny_model()
    calls, faults = golden(model, both)
    # Values near those without a fault: what overflows is computed in the call itself.
    mild = [replace(each, bits=(30 - number % 31 // 2,)) for number, each in enumerate(faults)]
    mild = [each for each in mild if each.bits < (30,)]
    for trial, found in zip(mild, compute(Ahead("none"), calls, mild), strict=True):
        alone, batched = Run(RunSpec(fault=trial)), None
        alone.attach(model)
        expected = both(model)
        alone.detach()
        assert isinstance(found, Batched)
        batched = Run(RunSpec(fault=trial), found.replies())
        batched.attach(model)
        answer = both(model)
        batched.detach()
        assert torch.equal(answer, expected)
        assert answer.dtype == expected.dtype


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"do_sample": True}, "it samples"),
        ({"past_key_values": DynamicCache()}, "it passes a cache"),
        ({"num_beams": 2}, "it does not call the model by generate alone, or not greedily"),
        ({"stop_strings": None, "no_repeat_ngram_size": 2}, "it uses NoRepeatNGramLogits"),
    ],
)
def test_what_cannot_be_batched_says_why(changes: dict[str, Any], reason: str) -> None:
    calls, _ = golden(tiny_model(), lambda model: ask(model, **changes))
    assert calls.alone is not None
    assert reason in calls.alone


def changed_weights(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.add_(1e-4)


def other_weights(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


@pytest.mark.parametrize("change", [changed_weights, other_weights])
def test_changed_weights_are_not_answered_for(change: Callable[[Any], None]) -> None:
    model = tiny_model()
    calls, faults = golden(model)
    (found, *_) = compute(Ahead("none"), calls, faults)
    assert isinstance(found, Batched)
    change(model)
    replies = found.replies()
    run = Run(RunSpec(fault=faults[0]), replies)
    run.attach(model)
    ask(model)
    run.detach()
    assert replies.went_elsewhere
    assert not replies.delivered


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": torch.tensor([[1, 5, 9, 12]])},
        {"max_new_tokens": 5},
        {"repetition_penalty": 1.1},
        {"do_sample": True},
        {"eos_token_id": 53},
    ],
)
def test_another_call_is_not_answered(other: dict[str, Any]) -> None:
    model = tiny_model()
    calls, faults = golden(model)
    (found, *_) = compute(Ahead("none"), calls, faults)
    assert isinstance(found, Batched)
    replies = found.replies()
    run = Run(RunSpec(fault=faults[0]), replies)
    run.attach(model)
    ask(model, **other)
    run.detach()
    assert replies.went_elsewhere


def test_the_same_call_is_answered_without_computing_anything() -> None:
    model = tiny_model()
    calls, faults = golden(model)
    (found, *_) = compute(Ahead("none"), calls, faults)
    assert isinstance(found, Batched)
    run = Run(RunSpec(fault=faults[0], record=True), found.replies())
    run.attach(model)
    answer = ask(model)
    run.detach()
    assert answer[4:] == found.continuation.said
    assert run.golden is not None
    assert run.golden.steps == 0


def test_several_end_tokens_in_a_tensor_are_compared_by_their_values() -> None:
    model = tiny_model()
    calls, faults = golden(model, lambda model: ask(model, eos_token_id=torch.tensor([7, 9])))
    (found, *_) = compute(Ahead("none"), calls, faults)
    assert isinstance(found, Batched)
    for ends, is_known in (([7, 9], True), ([7, 8], False)):
        replies = found.replies()
        run = Run(RunSpec(fault=faults[0]), replies)
        run.attach(model)
        ask(model, eos_token_id=torch.tensor(ends))
        run.detach()
        assert run.error is None
        assert replies.delivered is is_known


def test_what_a_caller_changes_afterwards_is_not_what_was_asked() -> None:
    model = tiny_model()
    words = [[7, 9]]
    watch = Run(RunSpec(record=True))
    watch.attach(model)
    for _ in range(2):
        ask(model, bad_words_ids=words)
        words[0][0] = 8
    watch.detach()
    asked = [watch.asked[call]._surroundings[0]["bad_words_ids"] for call in range(2)]
    assert asked == [[[7, 9]], [[8, 9]]]


def ask_padded(model: Any) -> list[list[int]]:
    prompts = torch.tensor([[1, 5, 9, 11], [0, 0, 0, 7]])
    mask = (prompts != 0).long()
    said = model.generate(prompts, attention_mask=mask, max_new_tokens=6, do_sample=False)
    answers: list[list[int]] = said.tolist()
    return answers


def test_what_overflows_in_a_padded_call_is_computed_under_its_mask() -> None:
    model = tiny_model()
    layer = "model.layers.0.self_attn.q_proj"
    calls, _ = golden(model, ask_padded)
    # Of some values each the sign, and the highest exponent bit, with which most overflow.
    faults = [
        Fault(0, 2, layer, row, 0, neuron, (bit,), "fp32")
        for row in (0, 1)
        for neuron in range(6)
        for bit in (31, 30)
    ]
    found = compute(Ahead("none"), calls, faults)
    for fault, each in zip(faults, found, strict=True):
        run = Run(RunSpec(fault=fault))
        run.attach(model)
        told = ask_padded(model)
        run.detach()
        if isinstance(each, Batched):
            assert each.continuation.said == told[fault.row][4:]
    assert all(isinstance(each, Batched) for each in found[::2])
    for row in (found[:12], found[12:]):
        assert any("under a mask" in str(each) for each in row)


def by_hand(model: Any) -> object:
    output = model(PROMPT, use_cache=True)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    return model(token, past_key_values=output.past_key_values)


@pytest.mark.parametrize("policy", ["ft2", "ft2-recompute"])
@pytest.mark.parametrize(
    "behind",
    [
        lambda model: ask(model, torch.tensor([[1, 5, 9, 12]])),
        lambda model: ask(model, num_beams=2),
        by_hand,
    ],
    ids=["another prompt", "beams", "by hand"],
)
def test_what_is_asked_behind_the_fault_is_computed_with_the_protection(
    policy: str, behind: Callable[[Any], object]
) -> None:
    model = tiny_model()
    calls, faults = golden(model)
    (found, *_) = compute(Ahead(policy), calls, faults)
    assert isinstance(found, Batched)
    run = Run(RunSpec(policy, fault=faults[0]), found.replies())
    run.attach(model)
    ask(model)
    assert not run.left_first_token, "an answer that is known was computed"
    behind(model)
    run.detach()
    assert run.error is None
    assert run.left_first_token
    # A layer outside of protection is of its own class again.
    assert {type(each) for each in model.modules()} == {
        type(each) for each in tiny_model().modules()
    }


def test_the_batch_is_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt((1, 2, 3), 60)]
    model = tiny_model()
    assert fitting_rows(model, prompts) == 256
    monkeypatch.setattr("ft2.campaign.batch_size._free", lambda device: 2_000_000)
    few = fitting_rows(model, prompts)
    assert 8 <= fitting_rows(model, prompts, sharers=2) < few < 256


def test_a_fixed_batch_has_more_rows_where_any_gpu_of_the_kind_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(dtype=torch.float16)
    prompt = Prompt((1, 2, 3), 60)
    assert fixed_rows(model, prompt) == 32
    weight = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    there: Any = SimpleNamespace(
        config=model.config,
        parameters=model.parameters,
        get_input_embeddings=lambda: SimpleNamespace(weight=weight),
    )
    for total, rows in ((8_000_000, 32), (16 * 2**30, 256)):
        properties = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device, found=properties: found
        )
        assert fixed_rows(there, prompt) == rows
