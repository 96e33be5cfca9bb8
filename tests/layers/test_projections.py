"""The projections of every supported architecture, against the models themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import BartForCausalLM, BartForConditionalGeneration, PreTrainedModel

from ft2.forward import Order, tap
from ft2.layers import Projection, UnsupportedModelError, projections, unwrap
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_config

_PROMPT = torch.tensor([[5, 6, 7, 8]])

# FT2, Table 1: what no activation and no scaling separates from the next linear layer.
_CRITICAL = {
    "q_proj": False,
    "k_proj": False,
    "v_proj": True,
    "o_proj": True,
    "out_proj": True,
    "gate_proj": False,
    "up_proj": True,
    "down_proj": True,
    "fc1": False,
    "fc2": True,
    "fc_in": False,
    "fc_out": True,
    "c_attn": True,
    "c_proj": True,
    "c_fc": False,
}

_KINDS_OF_A_BLOCK = {
    "gated": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "gptj": ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "c_proj"],
}


def _layers_in_the_order_they_run(model: PreTrainedModel) -> list[str]:
    order: list[str] = []

    def note(name: str) -> Callable[[Tensor], Tensor]:
        def transform(output: Tensor) -> Tensor:
            order.append(name)
            return output

        return transform

    taps = [
        tap(model.get_submodule(each.name), Order.OBSERVE, note(each.name))
        for each in projections(model)
    ]
    model(_PROMPT)
    for each in taps:
        each.remove()
    return order


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_projections_are_listed_in_the_order_they_run(model_type: str) -> None:
    model = tiny_model(model_type)
    assert [each.name for each in projections(model)] == _layers_in_the_order_they_run(model)


def test_ten_blocks_and_more_are_listed_by_number_and_not_by_name() -> None:
    model = tiny_model("llama", num_hidden_layers=11)
    assert [each.name for each in projections(model)] == _layers_in_the_order_they_run(model)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_linear_layer_of_the_blocks_is_listed_and_no_other(model_type: str) -> None:
    model = tiny_model(model_type)
    linear = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
    }
    assert {each.name for each in projections(model)} == linear
    assert not any("embed" in each.name or "wte" in each.name for each in projections(model))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_criticality_is_that_of_the_papers_first_table(model_type: str) -> None:
    found = projections(tiny_model(model_type))
    kinds = _KINDS_OF_A_BLOCK.get(model_type, _KINDS_OF_A_BLOCK["gated"])
    assert [each.kind for each in found] == kinds * 2
    assert {each.name: each.critical for each in found} == {
        each.name: _CRITICAL[each.kind] for each in found
    }


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_sizes_are_those_of_the_layers_inputs_and_outputs(model_type: str) -> None:
    model = tiny_model(model_type)
    for each in projections(model):
        module = model.get_submodule(each.name)
        assert module(torch.zeros(1, 3, each.in_features)).shape == (1, 3, each.out_features)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_columns_cover_the_output_without_gap_or_overlap(model_type: str) -> None:
    for each in projections(tiny_model(model_type)):
        starts = [start for start, _, _ in each.columns]
        stops = [stop for _, stop, _ in each.columns]
        assert starts == [0, *stops[:-1]]
        assert stops[-1] == each.out_features
        assert each.critical == any(critical for _, _, critical in each.columns)
        assert each.reason


def test_grouped_queries_leave_key_and_value_narrower_than_the_query() -> None:
    widths = {each.kind: each.out_features for each in projections(tiny_model("llama"))}
    assert (widths["q_proj"], widths["k_proj"], widths["v_proj"]) == (16, 8, 8)


def test_only_the_value_columns_of_a_fused_projection_are_critical() -> None:
    fused = projections(tiny_model("gpt2"))[0]
    assert fused.kind == "c_attn"
    assert fused.columns == ((0, 32, False), (32, 48, True))


def test_the_value_columns_of_a_fused_projection_are_what_the_cache_stores_as_values() -> None:
    model = tiny_model("gpt2")
    fused = projections(model)[0]
    outputs: list[Tensor] = []

    def note(output: Tensor) -> Tensor:
        outputs.append(output)
        return output

    attached = tap(model.get_submodule(fused.name), Order.OBSERVE, note)
    cache = model(_PROMPT, use_cache=True).past_key_values
    attached.remove()
    (start, stop) = next((start, stop) for start, stop, critical in fused.columns if critical)
    values = cache.layers[0].values.transpose(1, 2).reshape(1, 4, -1)
    assert torch.equal(outputs[0][..., start:stop], values)


def test_a_plain_layer_has_one_range_of_columns() -> None:
    up = next(each for each in projections(tiny_model("llama")) if each.kind == "up_proj")
    assert up.columns == ((0, 24, True),)


def test_a_model_without_a_head_has_the_same_projections() -> None:
    model = tiny_model("llama")
    inner = [each.name for each in projections(model.base_model)]
    assert [f"model.{name}" for name in inner] == [each.name for each in projections(model)]


def test_a_compiled_model_has_the_projections_of_the_model_inside() -> None:
    model = tiny_model("llama")
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert projections(compiled) == projections(model)
    assert unwrap(compiled) is model


def test_a_model_with_adapters_is_the_model_inside() -> None:
    model = tiny_model("llama")

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = model

        def get_base_model(self) -> nn.Module:
            return self.base_model

    assert unwrap(Adapted()) is model
    assert projections(Adapted()) == projections(model)


class _Holding(nn.Module):
    def __init__(self, **held: nn.Module) -> None:
        super().__init__()
        self.module = nn.ModuleDict(held)


def test_a_module_that_holds_one_model_that_generates_is_the_model_inside() -> None:
    model = tiny_model("llama")
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(_Holding(model=model, same=model, other=nn.Linear(2, 2))) is model


def test_a_module_that_holds_two_models_that_generate_is_neither() -> None:
    two = _Holding(target=tiny_model("llama"), draft=tiny_model("llama"))
    assert unwrap(two) is two


def test_a_model_with_layers_of_its_own_is_not_the_one_that_helps_it() -> None:
    own = _Holding(judge=tiny_model("llama"), layers=nn.ModuleList([nn.Linear(2, 2)]))
    assert unwrap(own) is own
    assert unwrap(_Holding(listed=nn.ModuleList([model := tiny_model("llama")]))) is model


def test_listing_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = dict(vars(model))
    projections(model)
    assert vars(model) == before


def test_a_projection_can_be_a_key_and_is_equal_to_its_like() -> None:
    model = tiny_model("opt")
    assert set(projections(model)) == set(projections(tiny_model("opt", seed=1)))
    assert isinstance(projections(model)[0], Projection)


def test_a_module_that_reads_no_token_ids_is_refused_in_one_sentence() -> None:
    with pytest.raises(UnsupportedModelError, match="could not run this Linear on token ids") as e:
        projections(nn.Linear(2, 2))
    assert "\n" not in str(e.value)


def test_a_model_that_nobody_has_heard_of_is_looked_into_all_the_same() -> None:
    model = tiny_model("llama")
    known = projections(model)
    model.config.model_type = "unheard-of"
    other = type("Unheard", (type(model),), {})
    model.__class__ = other
    assert projections(model) == known


def test_a_model_without_blocks_says_what_it_is_made_of() -> None:
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match=r"no linear projection .* Llama.* lm_head"):
        projections(model)


def test_an_unsupported_model_is_a_value_error() -> None:
    assert issubclass(UnsupportedModelError, ValueError)


@pytest.mark.parametrize("thing", [None, "meta-llama/Llama-2-7b", 3, nn.Linear])
def test_what_is_no_module_is_refused_by_its_type(thing: object) -> None:
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    with pytest.raises(TypeError, match=kind) as caught:
        unwrap(thing)
    assert "\n" not in str(caught.value)


def test_a_wrapper_that_holds_a_model_is_refused_with_a_hint() -> None:
    class Pipeline:
        model = nn.Linear(2, 2)

    with pytest.raises(TypeError, match=r"; pass its \.model"):
        unwrap(Pipeline())


def test_a_quantised_model_has_the_projections_of_the_plain_one() -> None:
    model = tiny_model("llama")
    plain = projections(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert projections(quantised) == plain


def test_a_model_with_an_encoder_is_refused_and_its_decoder_alone_is_not() -> None:
    with torch.device("meta"):
        both = BartForConditionalGeneration(small_config("bart"))
        alone = BartForCausalLM(small_config("bart"))
    with pytest.raises(UnsupportedModelError, match="has an encoder beside its decoder"):
        projections(both)
    assert {each.name.split(".")[1] for each in projections(alone)} == {"decoder"}
