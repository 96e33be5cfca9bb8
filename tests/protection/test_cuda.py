"""The same on a GPU: faults land, protection corrects them, compiled decoding included."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import ft2
from tests.forward.known_steps import known_steps
from tests.tiny_models import tiny_model

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("fresh_compiler"),
]

_LAYER = "model.layers.1.mlp.up_proj"
_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "prefill in chunks": {"prefill_chunk_size": 2},
    "static cache, compiled": {"cache_implementation": "static"},
    "without a cache": {"use_cache": False},
}


def _say(model: PreTrainedModel, **options: Any) -> Tensor:
    prompt = torch.tensor([[0, 0, 1, 5, 9, 11], [1, 5, 9, 11, 7, 3]], device="cuda")
    return model.generate(
        prompt,
        attention_mask=(prompt != 0).long(),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=None,
        **options,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", _MODES)
def test_a_fault_lands_on_the_gpu_and_is_corrected(mode: str, dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype).to("cuda")
    width = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}[dtype]
    fault = ft2.Fault(
        call=0,
        step=3,
        layer=_LAYER,
        row=1,
        position=1 if mode == "without a cache" else 0,
        neuron=5,
        bits=(width - 2,),
    )
    with ft2.inject(model, fault) as bare:
        _say(model, **_MODES[mode])
    assert bare.landed
    assert bare.before is not None
    assert bare.after is not None
    assert abs(bare.after) > 100 * abs(bare.before) or bare.after != bare.after
    with ft2.protect(model) as protection, ft2.inject(model, fault) as corrected:
        _say(model, **_MODES[mode])
    assert corrected.landed
    assert sum(protection.counts) >= 1
    assert protection.left_first_token
    assert type(model).__mro__[0].__name__ == "LlamaForCausalLM"


def test_steps_computed_by_known_code_are_clipped_and_counted_as_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = known_steps(monkeypatch)
    model = tiny_model("llama").to("cuda")
    # Bounds of scale 1 are left all the time.
    with ft2.protect(model, scale=1.0) as protection:
        said = [_say(model), *(_say(model, cache_implementation="static") for _ in range(2))]
    assert steps == [*range(3, 10)] * 2
    assert all(torch.equal(each, said[0]) for each in said)
    eager, compiled = protection.counts[:2], protection.counts[2:]
    assert min(eager) > 10
    # Other kernels round other values to a bound.
    assert compiled == pytest.approx(eager * 2, rel=0.05)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("policy", ["maximals", "global-clipper"])
def test_profiled_bounds_correct_a_fault_on_the_gpu(policy: str, mode: str) -> None:
    model = tiny_model("llama", dtype=torch.float16).to("cuda")
    prompts = [[1, 5, 9, 11], [1, 5, 9, 11, 7, 3]]
    profile = ft2.profile(model, prompts, policy, max_new_tokens=10, progress=False)
    fault = ft2.Fault(
        call=0,
        step=3,
        layer="model.layers.1.self_attn.o_proj",
        row=1,
        position=1 if mode == "without a cache" else 0,
        neuron=5,
        bits=(14,),
    )
    with ft2.protect(model, policy, bounds=profile) as protection:
        _say(model, **_MODES[mode])
        fault_free = sum(protection.counts)
    with (
        ft2.protect(model, policy, bounds=profile) as protection,
        ft2.inject(model, fault) as corrected,
    ):
        _say(model, **_MODES[mode])
    assert corrected.landed
    assert protection.left_first_token
    assert sum(protection.counts) > fault_free


@pytest.mark.parametrize("mode", _MODES)
def test_what_is_out_of_bounds_is_set_to_zero_on_the_gpu_where_that_is_asked_for(mode: str) -> None:
    model = tiny_model("llama", dtype=torch.float16).to("cuda")
    fault = ft2.Fault(
        call=0,
        step=3,
        layer=_LAYER,
        row=1,
        position=1 if mode == "without a cache" else 0,
        neuron=5,
        bits=(14,),
    )
    with ft2.protect(model, correction="zero") as protection, ft2.inject(model, fault) as injected:
        _say(model, **_MODES[mode])
    assert injected.landed
    assert sum(protection.counts) >= 1


def test_a_fault_and_a_protection_wait_for_the_device_no_more_than_the_model_does() -> None:
    model = tiny_model("llama").to("cuda")
    fault = ft2.Fault(call=0, step=0, layer=_LAYER, row=0, position=1, neuron=5, bits=(30,))
    alone = _waits(model)
    with ft2.protect(model), ft2.inject(model, fault) as injection:
        attached = _waits(model)
    assert injection.landed
    assert attached == alone


def _waits(model: PreTrainedModel) -> int:
    """Count the waits of one forward for the device."""
    ids = torch.tensor([[1, 5, 9, 11]], device="cuda")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            model(ids, use_cache=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)
