"""What batched trials return with ``return_dict_in_generate`` is what they return alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ft2.campaign import Ahead, Batched, GoldenCalls, Run, RunSpec
from ft2.campaign.replies import Replies
from ft2.faults import Draw, Fault, fault_model
from tests.tiny_models import tiny_model

PROMPT = torch.tensor([[1, 5, 9, 11]])
ALL: dict[str, Any] = {"output_scores": True, "output_logits": True, "output_hidden_states": True}


def ask(model: Any, prompt: Tensor = PROMPT, **asked: Any) -> Any:
    asked = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, **asked}
    return model.generate(prompt, attention_mask=(prompt > 0).long(), **asked)


def run(model: Any, spec: RunSpec, replies: Replies | None = None, **asked: Any) -> tuple[Run, Any]:
    attached = Run(spec, replies)
    attached.attach(model)
    said = ask(model, **asked)
    attached.detach()
    return attached, said


def golden(model: Any, policy: str = "none", **asked: Any) -> tuple[GoldenCalls, list[Fault]]:
    recorded, _ = run(model, RunSpec(record=True), **asked)
    assert recorded.golden is not None
    draws = (Draw(0, "returned", trial) for trial in range(40))
    faults = [recorded.golden.space.sample(draw, fault_model("exp")) for draw in draws]
    recorded, _ = run(model, RunSpec(policy, record=True), **asked)
    assert recorded.golden is not None
    outputs = recorded.golden.outputs
    return GoldenCalls(recorded.asked, recorded.calls, outputs, recorded.returned), faults


def assert_close(one: Any, other: Any) -> None:
    """Compare to rounding, NaN and infinity included."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def layers(said: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in said.past_key_values.layers]


@pytest.mark.parametrize("policy", ["none", "ft2"])
@pytest.mark.parametrize("model_type", ["llama", "opt"])
@pytest.mark.parametrize(
    "asked",
    [{}, ALL, {**ALL, "min_new_tokens": 4, "eos_token_id": list(range(3, 40)), "pad_token_id": 0}],
    ids=["tokens and cache", "all", "all of answers of several lengths"],
)
def test_each_field_is_as_if_the_row_had_been_alone(
    model_type: str, policy: str, asked: dict[str, Any]
) -> None:
    model = tiny_model(model_type)
    calls, faults = golden(model, policy, **asked)
    trials = [(trial, 0, each) for trial, each in enumerate(faults)]
    found = Ahead(policy, rows=16).compute({0: calls}, trials)
    lengths = set()
    for trial, _, fault in trials:
        computed = found[trial]
        assert isinstance(computed, Batched), computed
        assert not computed.is_exact
        replies = computed.replies()
        _, batched = run(model, RunSpec(policy, fault=fault), replies, **asked)
        assert replies.delivered
        _, alone = run(model, RunSpec(policy, fault=fault), **asked)
        assert type(batched) is type(alone)
        assert list(batched) == list(alone)
        assert torch.equal(batched.sequences, alone.sequences)
        assert type(batched.past_key_values) is type(alone.past_key_values)
        assert batched.past_key_values.get_seq_length() == alone.past_key_values.get_seq_length()
        assert_close(layers(batched), layers(alone))
        for name in {"scores", "logits", "hidden_states"} & set(alone):
            assert_close(batched[name], alone[name])
            for step in range(fault.step):
                mine, other = batched[name][step], alone[name][step]
                assert all(map(torch.equal, mine, other))
        lengths.add(alone.sequences.shape[1])
    assert len(lengths) > 1 or "eos_token_id" not in asked


def test_what_a_test_does_to_an_answer_stays_with_that_answer() -> None:
    model = tiny_model()
    calls, faults = golden(model, **ALL)
    found = Ahead("none").compute({0: calls}, [(0, 0, faults[0])])
    assert isinstance(found[0], Batched)
    spec = RunSpec(fault=faults[0])
    _, first = run(model, spec, found[0].replies(), **ALL)
    kept = [each.clone() for each in first.scores]
    for each in (*first.scores, first.sequences, *layers(first)[0]):
        each.zero_()
    _, second = run(model, spec, found[0].replies(), **ALL)
    assert all(map(torch.equal, second.scores, kept))
    assert int(second.sequences.sum()) > 0
    assert bool(layers(second)[0][0].any())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"output_attentions": True}, "attention weights"),
        ({"prompt": PROMPT.repeat(2, 1)}, "of several prompts"),
        ({"prompt": torch.tensor([[0, 1, 5, 9]])}, "of a padded prompt"),
    ],
)
def test_what_cannot_be_returned_as_if_alone_says_why(asked: dict[str, Any], reason: str) -> None:
    model = (
        tiny_model(attn_implementation="eager") if "output_attentions" in asked else tiny_model()
    )
    calls, _ = golden(model, **asked)
    assert calls.alone is not None
    assert reason in calls.alone


def test_answers_that_do_not_fit_into_the_memory_are_computed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    calls, faults = golden(model, **ALL)
    monkeypatch.setattr("ft2.campaign.batch_size._free", lambda device: 500_000)
    found = Ahead("none").compute({0: calls}, [(n, 0, each) for n, each in enumerate(faults)])
    assert set(found.values()) == {"what all its trials return does not fit into the memory"}
