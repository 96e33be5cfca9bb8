"""What policies with profiled bounds restrict, to what, and from when on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import ft2
from ft2 import Profile
from ft2.layers import activations, projections
from tests.layers.small import Model
from tests.protection.watch import generate, prompts, watching
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_model

_POLICIES = ["ranger", "maximals", "global-clipper", "ft2-offline"]
_HUGE = 1e30


def _profile(model: PreTrainedModel, policy: str, **options: Any) -> Profile:
    return ft2.profile(model, prompts(4), policy, max_new_tokens=20, progress=False, **options)


def _expected(model: PreTrainedModel, policy: str) -> set[str]:
    """The modules that a policy protects, by what their projections are for."""
    if policy == "ranger":
        return {each.name for each in activations(model)}
    return {
        each.name
        for each in projections(model)
        if {
            "maximals": each.ends is not None,
            "global-clipper": each.ends == "attention" or bool(each.values),
            "ft2-offline": each.critical,
        }[policy]
    }


@pytest.mark.parametrize("policy", _POLICIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_profiled_prompt_is_continued_as_without_protection(
    architecture: str, policy: str
) -> None:
    model = tiny_model(architecture)
    profile = _profile(model, policy)
    # A batch is rounded otherwise than the single prompts that were profiled.
    ids = prompts(4)
    plain = generate(model, ids)
    with ft2.protect(model, policy, bounds=profile) as protection:
        protected = generate(model, ids)
    assert torch.equal(protected, plain)
    assert protection.counts == [0, 0, 0, 0]
    assert protection.left_first_token


@pytest.mark.parametrize("policy", _POLICIES)
@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2", "gptj"])
def test_the_layers_of_table_1_are_restricted_and_no_others(architecture: str, policy: str) -> None:
    model = tiny_model(architecture)
    profile = _profile(model, policy)
    layers = [each.name for each in projections(model)]
    layers += [each.name for each in activations(model)]
    expected = _expected(model, policy)
    assert set(profile.bounds) == expected
    assert expected < set(layers)
    for layer in layers:
        # The last column of a fused projection is one of its values.
        with (
            ft2.protect(model, policy, bounds=profile) as protection,
            watching(model, layer, strikes={1: {(0, 0, -1): torch.inf}}) as watch,
        ):
            generate(model, prompts(), max_new_tokens=2)
        restricted = bool(watch.passed_on[1].isfinite().all())
        assert restricted == (layer in expected), layer
        assert sum(protection.counts) > 0 or layer not in expected


# What each policy makes of -inf, +inf, a huge number and NaN, with bounds (low, high).
_CORRECTED: dict[str, tuple[str, str, str, str]] = {
    "ranger": ("low", "high", "high", "nan"),
    "maximals": ("1.3 low", "1.3 high", "1.3 high", "zero"),
    "global-clipper": ("zero", "zero", "zero", "zero"),
    "ft2-offline": ("low", "high", "high", "zero"),
}
_LAYERS = {"ranger": "model.layers.1.mlp.act_fn"}


@pytest.mark.parametrize("run", [0, 1], ids=["first token", "later token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("policy", _POLICIES)
def test_what_is_out_of_bounds_is_corrected_from_the_first_token_on(
    policy: str, dtype: torch.dtype, run: int
) -> None:
    model = tiny_model(dtype=dtype)
    layer = _LAYERS.get(policy, "model.layers.1.self_attn.o_proj")
    profile = _profile(model, policy)
    pair = profile.bounds[layer]
    assert pair is not None
    # The room for rounding, of numbers on both sides of zero.
    low, high = ((1 + 8 * torch.finfo(dtype).eps) * each for each in pair)
    assert low < 0 < high
    outcome = {
        "low": low,
        "high": high,
        "1.3 low": 1.3 * pair[0],
        "1.3 high": 1.3 * pair[1],
        "zero": 0.0,
        "nan": torch.nan,
    }
    struck = [-torch.inf, torch.inf, min(_HUGE, torch.finfo(dtype).max), torch.nan]
    strikes = {run: {(0, 0, column): value for column, value in enumerate(struck)}}
    with (
        ft2.protect(model, policy, bounds=profile) as protection,
        watching(model, layer, strikes=strikes) as watch,
    ):
        generate(model, prompts(), max_new_tokens=2)
    expected = torch.tensor([outcome[each] for each in _CORRECTED[policy]], dtype=dtype)
    passed_on = watch.passed_on[run][0, 0]
    torch.testing.assert_close(passed_on[:4], expected, equal_nan=True)
    assert torch.equal(passed_on[4:], watch.computed[run][0, 0, 4:])
    assert sum(protection.counts) >= (3 if policy == "ranger" else 4)


def test_a_larger_scale_widens_profiled_bounds() -> None:
    model = tiny_model()
    profile = _profile(model, "ranger")
    layer = "model.layers.0.mlp.act_fn"
    with (
        ft2.protect(model, "ranger", scale=3.0, bounds=profile),
        watching(model, layer, strikes={1: {(0, 0, 0): _HUGE}}) as watch,
    ):
        generate(model, prompts(), max_new_tokens=2)
    pair = profile.bounds[layer]
    assert pair is not None
    assert watch.passed_on[1][0, 0, 0].item() == pytest.approx(3 * pair[1])


def test_ft2_offline_sets_to_zero_where_that_is_asked_for() -> None:
    model = tiny_model()
    layer = "model.layers.0.mlp.up_proj"
    with (
        ft2.protect(model, "ft2-offline", bounds=_profile(model, "ft2-offline"), correction="zero"),
        watching(model, layer, strikes={1: {(0, 0, 0): _HUGE}}) as watch,
    ):
        generate(model, prompts(), max_new_tokens=2)
    assert watch.passed_on[1][0, 0, 0] == 0


@pytest.mark.parametrize("column", [0, 31, 32, 47])
def test_of_a_fused_attention_layer_global_clipper_restricts_the_values_alone(column: int) -> None:
    model = tiny_model("gpt2")
    layer = "transformer.h.0.attn.c_attn"
    with (
        ft2.protect(model, "global-clipper", bounds=_profile(model, "global-clipper")),
        watching(model, layer, strikes={1: {(0, 0, column): _HUGE}}) as watch,
    ):
        generate(model, prompts(), max_new_tokens=2)
    struck = watch.computed[1].clone()
    struck[0, 0, column] = 0 if column >= 32 else _HUGE
    assert torch.equal(watch.passed_on[1], struck)


def test_columns_that_alternate_are_restricted_where_they_lie() -> None:
    model = small_model("gpt_neox")
    layer = "gpt_neox.layers.0.attention.query_key_value"
    ids = prompts(1) % 50 + 4
    profile = ft2.profile(model, ids, "global-clipper", max_new_tokens=3, progress=False)
    strikes = {1: {(0, 0, 15): _HUGE, (0, 0, 16): _HUGE, (0, 0, 47): torch.nan}}
    with (
        ft2.protect(model, "global-clipper", bounds=profile) as protection,
        watching(model, layer, strikes=strikes) as watch,
    ):
        generate(model, ids, max_new_tokens=2)
    expected = watch.computed[1].clone()
    expected[0, 0, [15, 16, 47]] = torch.tensor([_HUGE, 0.0, 0.0])
    assert torch.equal(watch.passed_on[1], expected)
    assert sum(protection.counts) >= 2


def test_counts_are_of_the_request_that_was_struck_and_of_no_padding() -> None:
    model = tiny_model()
    profile = _profile(model, "ft2-offline")
    ids = prompts(3)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    layer = "model.layers.1.mlp.down_proj"
    strikes = {0: {(1, 0, 0): _HUGE, (1, 5, 0): torch.nan, (2, 0, 1): _HUGE}}
    with ft2.protect(model, "ft2-offline", bounds=profile) as unstruck:
        generate(model, ids, mask, max_new_tokens=2)
    with (
        ft2.protect(model, "ft2-offline", bounds=profile) as protection,
        watching(model, layer, 3, strikes) as watch,
    ):
        generate(model, ids, mask, max_new_tokens=2)
    assert watch.passed_on[0].isfinite().all()
    assert watch.passed_on[0][1, 0, 0] < _HUGE
    assert protection.counts[0] == unstruck.counts[0]
    assert protection.counts[1] >= unstruck.counts[1] + 1
    assert protection.counts[2] >= unstruck.counts[2] + 1


def test_beams_of_a_request_are_counted_together() -> None:
    model = tiny_model()
    with ft2.protect(model, "maximals", bounds=_profile(model, "maximals")) as protection:
        generate(model, prompts(2), num_beams=3)
    assert len(protection.counts) == 2


def test_a_compiled_model_is_restricted_as_an_eager_one() -> None:
    model = tiny_model()
    profile = _profile(model, "maximals")
    layer = "model.layers.0.mlp.down_proj"
    with torch.no_grad():
        model.get_submodule(layer).weight[0] *= 100
    model_profile = Profile(
        profile.policy, _profile(model, "maximals").model, profile.prompts, profile.bounds
    )
    with ft2.protect(model, "maximals", bounds=model_profile) as eager:
        expected = model(prompts()).logits
    compiled: Any = torch.compile(model, backend="eager")
    with ft2.protect(compiled, "maximals", bounds=model_profile) as protection, torch.no_grad():
        torch.testing.assert_close(compiled(prompts()).logits, expected)
    assert protection.counts == eager.counts
    assert sum(eager.counts) > 0


@pytest.mark.parametrize("policy", ["maximals", "ft2-offline"])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_have_bounds_of_their_own(policy: str, implementation: str) -> None:
    model = small_model("mixtral")
    model.set_experts_implementation(implementation)
    ids = prompts(8) % 50 + 4
    profile = ft2.profile(model, ids, policy, max_new_tokens=4, progress=False)
    experts = "model.layers.0.mlp.experts.down_proj"
    pairs = {profile.bounds[f"{experts}.{number}"] for number in range(4)}
    assert len(pairs) == 4
    plain = generate(model, ids, max_new_tokens=4)
    with ft2.protect(model, policy, bounds=profile) as protection:
        assert torch.equal(generate(model, ids, max_new_tokens=4), plain)
    assert protection.counts == [0] * 8
    # Bounds tighter than what was seen show that each expert's outputs are restricted.
    tight = {
        name: (0.0, 0.0) if name == f"{experts}.1" else pair
        for name, pair in profile.bounds.items()
    }
    narrowed = Profile(profile.policy, profile.model, profile.prompts, tight)
    with ft2.protect(model, policy, bounds=narrowed) as protection:
        generate(model, ids, max_new_tokens=4)
    assert sum(protection.counts) > 100


def test_ranger_restricts_the_activations_of_experts_of_one_request_at_a_time() -> None:
    model = small_model("mixtral")
    ids = prompts(2) % 50 + 4
    profile = ft2.profile(model, ids, "ranger", max_new_tokens=4, progress=False)
    plain = generate(model, ids[:1], max_new_tokens=4)
    with ft2.protect(model, "ranger", bounds=profile) as protection:
        assert torch.equal(generate(model, ids[:1], max_new_tokens=4), plain)
        assert protection.counts == [0]
        with pytest.raises(RuntimeError, match=r"^ranger cannot tell whose .* one request"):
            generate(model, ids, max_new_tokens=4)
    narrowed = Profile(
        profile.policy, profile.model, profile.prompts, dict.fromkeys(profile.bounds, (0.0, 0.0))
    )
    with ft2.protect(model, "ranger", bounds=narrowed) as protection:
        generate(model, ids[:1], max_new_tokens=4)
    assert protection.counts[0] > 100


@pytest.mark.parametrize(
    ("policy", "architecture", "sentence"),
    [
        ("ranger", "lfm2", r"layers\.0\.feed_forward of this Lfm2.* computes silu itself"),
        ("ranger", "gpt_oss", r"computes sigmoid itself rather than in a module of its own"),
        ("ranger", "mamba", r"computes silu itself"),
        ("maximals", "deepseek_v4", r"no last projection of an MLP was found in this Deepseek"),
        ("maximals", "qwen4_exp", r"cannot tell whether .*experts.down_proj is the last"),
        ("global-clipper", "mamba", r"no values and outputs of attention were found in this Mamba"),
    ],
)
def test_what_a_policy_cannot_protect_in_a_model_is_refused(
    policy: str, architecture: str, sentence: str
) -> None:
    model = small_model(architecture)
    kind = type(model)
    with pytest.raises(ft2.UnsupportedModelError, match=sentence):
        ft2.profile(model, [[5, 6, 7]], policy, progress=False)
    assert type(model) is kind


def test_global_clipper_refuses_an_output_of_attention_that_is_attended_again() -> None:
    def attend_twice(b: Any, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(x @ x.mT, -1)
        return torch.as_tensor(x + b.last(weights @ b.other(weights @ b.first(x))))

    with pytest.raises(ft2.UnsupportedModelError, match=r"where blocks\.0\.other is both"):
        ft2.profile(Model(attend_twice), [[5, 6, 7]], "global-clipper", progress=False)


@pytest.mark.parametrize("policy", ["ranger", "maximals", "global-clipper"])
def test_a_rival_whose_correction_is_chosen_is_refused(policy: str) -> None:
    model = tiny_model()
    profile = _profile(model, policy)
    with pytest.raises(ValueError, match=f"^{policy} has its own correction"):
        ft2.protect(model, policy, bounds=profile, correction="clip")
