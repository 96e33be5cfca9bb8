"""A compiled model is protected as the same model is without compiling."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

import ft2
from tests.compiling import compiling
from tests.protection.watch import generate, prompts, watching
from tests.tiny_models import tiny_model

UP = "model.layers.0.mlp.up_proj"

Compile = Callable[[Any, str], Any]


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def broken_model() -> PreTrainedModel:
    """A model one of whose critical neurons always computes NaN."""
    model = tiny_model(num_hidden_layers=1)
    with torch.no_grad():
        weight = model.get_submodule(UP).weight
        assert isinstance(weight, Tensor)
        weight[3] = torch.nan
    return model


def compile_forward(model: Any, backend: str) -> Any:
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def compile_around(model: Any, backend: str) -> Any:
    return torch.compile(model, backend=backend)


def compile_in_place(model: Any, backend: str) -> Any:
    model.compile(backend=backend)
    return model


FORMS = [compile_forward, compile_around, compile_in_place]


@torch.no_grad()
def decode(model: Any, ids: Tensor, steps: int = 2) -> list[Tensor]:
    """The logits of the first token and of `steps` more."""
    output = model(ids, use_cache=True)
    logits = [output.logits]
    for _ in range(steps):
        ids = output.logits[:, -1:].argmax(-1)
        output = model(ids, past_key_values=output.past_key_values)
        logits.append(output.logits)
    return logits


def check_protected(model: Any, expected: list[Tensor], counts: list[int]) -> None:
    """`model` computes and counts as an eager model of the same weights did, at scale 1."""
    with ft2.protect(model, scale=1.0) as protection:
        for _ in range(2):
            logits = decode(model, prompts(2))
            torch.testing.assert_close(logits, expected)
    assert protection.counts == 2 * counts
    assert protection.left_first_token


@pytest.fixture(scope="module")
def eager() -> tuple[list[Tensor], list[int]]:
    model = broken_model()
    with ft2.protect(model, scale=1.0) as protection:
        logits = decode(model, prompts(2))
    # Nine tokens and two steps, one NaN each; all else was clipped to bounds of scale 1.
    assert min(protection.counts) >= 9 + 2
    assert max(protection.counts) > 9 + 2
    assert all(each.isfinite().all() for each in logits)
    assert all(each.isnan().any() for each in decode(model, prompts(2)))
    return logits, protection.counts


@pytest.mark.parametrize(
    ("form", "backend"), [*((form, "eager") for form in FORMS), (compile_forward, "aot_eager")]
)
def test_a_model_compiled_before_is_protected(
    form: Compile, backend: str, eager: tuple[list[Tensor], list[int]]
) -> None:
    model = form(broken_model(), backend)
    check_protected(model, *eager)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


@pytest.mark.parametrize("form", FORMS)
def test_a_model_compiled_and_run_before_is_protected(
    form: Compile, eager: tuple[list[Tensor], list[int]]
) -> None:
    model = form(broken_model(), "eager")
    assert decode(model, prompts(2))[2].isnan().any()
    check_protected(model, *eager)
    assert decode(model, prompts(2))[2].isnan().any(), "the protection was not removed"


@pytest.mark.parametrize("form", FORMS)
def test_a_protected_model_may_be_compiled(
    form: Compile, eager: tuple[list[Tensor], list[int]]
) -> None:
    model: Any = broken_model()
    with ft2.protect(model, scale=1.0) as protection:
        model = form(model, "eager")
        torch.testing.assert_close(decode(model, prompts(2)), eager[0])
    assert protection.counts == eager[1]


@pytest.mark.parametrize("form", FORMS)
def test_generating_with_a_compiled_model_is_protected(form: Compile) -> None:
    ids = prompts(2)
    with ft2.protect(broken_model(), scale=1.0) as eager:
        expected = generate(eager.model, ids)
    model = form(broken_model(), "eager")
    with ft2.protect(model, scale=1.0) as protection:
        assert torch.equal(generate(model, ids), expected)
    assert protection.counts == eager.counts
    assert protection.left_first_token


def test_a_fault_in_a_compiled_model_is_clipped() -> None:
    ids = prompts(2, seed=3)
    plain = tiny_model(num_hidden_layers=1)
    with watching(plain, UP, 2) as fault_free:
        decode(plain, ids)
    neuron = int(fault_free.computed[2][1, 0].abs().argmin())
    fault = ft2.Fault(call=0, step=2, layer=UP, row=1, position=0, neuron=neuron, bits=(30,))
    runs = []
    for backend in (None, "eager"):
        model = tiny_model(num_hidden_layers=1)
        if backend is not None:
            model.forward = torch.compile(model.forward, backend=backend)
        with ft2.protect(model) as protection, ft2.inject(model, fault) as injection:
            logits = decode(model, ids)
        assert injection.after is not None
        assert abs(injection.after) > 1e30
        runs.append((logits, protection.counts))
    torch.testing.assert_close(runs[0], runs[1])
    assert runs[0][1][1] > 0


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
def test_twenty_tokens_take_a_handful_of_graphs(architecture: str) -> None:
    model = tiny_model(architecture)
    model.forward = torch.compile(model.forward, backend="eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), ft2.protect(model):
        for seed in range(3):
            decode(model, prompts(2, seed=seed), steps=20)
            if seed == 0:
                graphs = counters["stats"]["unique_graphs"]
    # The prefill, the first step, and the steps after it, whose cache has no fixed length; each
    # broken in two at the decoder stack.
    assert graphs <= 6
    assert counters["stats"]["unique_graphs"] == graphs, "a new request compiles nothing"


def static(backend: str) -> dict[str, Any]:
    return {**compiling(backend), "eos_token_id": None}


def test_what_generate_compiles_for_a_static_cache_is_protected() -> None:
    ids = prompts(2, seed=3)
    with ft2.protect(broken_model(), scale=1.0) as eager:
        expected = generate(eager.model, ids, eos_token_id=None)
    model = broken_model()
    generate(model, ids, **static("eager"))
    unprotected = counters["stats"]["unique_graphs"]
    assert unprotected > 0, "generate compiled nothing"
    with ft2.protect(model, scale=1.0) as protection:
        for _ in range(2):
            assert torch.equal(generate(model, ids, **static("eager")), expected)
    assert protection.counts == 2 * eager.counts
    assert counters["stats"]["unique_graphs"] - unprotected <= 2
    output: Any = generate(
        model, ids, **static("eager"), output_logits=True, return_dict_in_generate=True
    )
    assert output.logits[5].isnan().any(), "the protection was not removed"


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)
def test_protection_is_compiled_by_the_default_backend() -> None:
    model = broken_model()
    ids = prompts(2, seed=3)
    with ft2.protect(model, scale=1.0) as eager:
        expected = decode(model, ids, steps=1)
    model.forward = torch.compile(model.forward, dynamic=False)
    with ft2.protect(model, scale=1.0) as protection:
        torch.testing.assert_close(decode(model, ids, steps=1), expected)
    assert protection.counts == eager.counts
    assert counters["stats"]["unique_graphs"] > 0
