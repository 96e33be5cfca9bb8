"""One run of a test: what is attached, what is seen, what it means."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

from ft2.campaign import Outcome, Run, RunSpec, is_harness_error, is_sticky, outcome_of
from ft2.campaign.noise import talk_noise
from ft2.faults import Fault
from tests.tiny_models import tiny_model

PROMPT = torch.tensor([[1, 5, 9, 11]])
FAULT = Fault(0, 1, "model.layers.0.mlp.up_proj", 0, 0, 3, (30,))


def generate(model: Any) -> list[int]:
    said = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=4, do_sample=False
    )
    return said[0].tolist()


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec(),
        RunSpec(record=True),
        RunSpec(noise=1),
        RunSpec(protection="ft2", fault=FAULT, record=True),
    ],
    ids=["nothing", "recorder", "noise", "all"],
)
def test_a_run_leaves_the_model_as_it_was(spec: RunSpec) -> None:
    model = tiny_model()
    expected, before = generate(model), classes(model)
    run = Run(spec)
    run.attach(model)
    generate(model)
    run.detach()
    run.detach()
    assert classes(model) == before
    assert generate(model) == expected


def test_what_was_seen_can_be_read_after_the_run() -> None:
    model = tiny_model()
    run = Run(RunSpec(protection="ft2", fault=FAULT, record=True))
    run.attach(model)
    generate(model)
    run.detach()
    assert run.golden is not None
    assert run.golden.steps == 4
    assert run.injection is not None
    assert run.injection.landed
    assert run.left_first_token
    assert run.corrected >= 0
    assert run.error is None


def test_a_run_without_a_model_has_seen_nothing() -> None:
    run = Run(RunSpec(protection="ft2", fault=FAULT, record=True))
    run.detach()
    assert (run.golden, run.injection, run.corrected) == (None, None, 0)
    assert not run.left_first_token


def test_attaching_to_another_model_leaves_the_first() -> None:
    first, second = tiny_model(), tiny_model(seed=1)
    before = classes(first)
    run = Run(RunSpec(record=True))
    run.attach(first)
    run.attach(second)
    assert classes(first) == before
    generate(second)
    run.detach()
    assert run.golden is not None
    assert run.golden.calls == 1


@pytest.mark.parametrize("spec", [RunSpec(record=True), RunSpec(fault=FAULT)])
def test_what_cannot_be_attached_leaves_the_model_as_it_was_and_is_remembered(
    spec: RunSpec,
) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    before = classes(model)
    run = Run(spec)
    with pytest.raises(ValueError, match="ft2 could not run this Sequential on token ids"):
        run.attach(model)
    assert isinstance(run.attach_error, ValueError)
    assert classes(model) == before


def test_the_first_error_that_leaves_the_model_is_remembered() -> None:
    model = tiny_model()
    run = Run(RunSpec())
    run.attach(model)
    with pytest.raises(IndexError):
        model(torch.tensor([[999]]))
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(PROMPT, max_new_tokens=0)
    run.detach()
    assert isinstance(run.error, IndexError)


def test_noise_takes_the_place_of_the_logits_and_repeats_with_its_seed() -> None:
    model = tiny_model()
    with torch.no_grad():
        plain = model(PROMPT).logits
        noisy = []
        for seed in (1, 1, 2):
            attached = talk_noise(model, seed)
            noisy.append(model(PROMPT).logits)
            attached.remove()
        assert torch.equal(model(PROMPT).logits, plain)
    assert noisy[0].shape == plain.shape
    assert noisy[0].dtype == plain.dtype
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    assert abs(noisy[0].mean()) < 0.3
    assert 0.7 < noisy[0].std() < 1.3


def test_a_model_without_logits_cannot_talk_noise() -> None:
    stack = AutoModel.from_config(tiny_model().config)
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings"):
        talk_noise(stack, 0)


@pytest.mark.parametrize(
    ("passed", "raised", "timed_out"), list(itertools.product([False, True], repeat=3))
)
def test_outcomes(passed: bool, raised: bool, timed_out: bool) -> None:
    expected = {
        (False, False): Outcome.SDC,
        (False, True): Outcome.DUE,
        (True, False): Outcome.MASKED,
        (True, True): Outcome.MASKED,
    }[passed, raised]
    assert outcome_of(passed, raised, timed_out) is (Outcome.DUE if timed_out else expected)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ..."), True),
        (RuntimeError("shapes do not match"), False),
        (AssertionError(), False),
        (IndexError("can't allocate memory"), False),
    ],
)
def test_only_running_out_of_memory_is_the_machines_fault(error: Exception, is_one: bool) -> None:
    assert is_harness_error(error) is is_one


def raised_from(cause: BaseException) -> BaseException:
    error = RuntimeError("generation failed")
    error.__cause__ = cause
    return error


def raised_during(context: BaseException) -> BaseException:
    error = AssertionError("no answer")
    error.__context__ = context
    return error


class GroupError(Exception):
    """What ExceptionGroup is, on every Python."""

    def __init__(self, *exceptions: BaseException) -> None:
        super().__init__("several")
        self.exceptions = exceptions


WRAPPERS: dict[str, Callable[[BaseException], BaseException]] = {
    "from": raised_from,
    "during": raised_during,
    "group": lambda error: GroupError(ValueError(), error),
    "deep": lambda error: raised_during(GroupError(raised_from(error))),
}


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_what_led_to_an_error_counts(wrapper: str) -> None:
    wrap = WRAPPERS[wrapper]
    assert is_harness_error(wrap(MemoryError()))
    assert is_sticky(wrap(torch.AcceleratorError("CUDA error: device-side assert triggered")))
    for harmless in (wrap(IndexError()), wrap(ValueError("no answer"))):
        assert not is_harness_error(harmless)
        assert not is_sticky(harmless)


def test_errors_that_led_to_each_other_end_the_search() -> None:
    first, second = raised_during(IndexError()), raised_from(IndexError())
    first.__context__, second.__cause__ = second, first
    assert not is_harness_error(first)
    assert not is_sticky(second)


def test_outcomes_read_as_their_names() -> None:
    assert [str(outcome) for outcome in Outcome] == ["masked", "sdc", "due"]
