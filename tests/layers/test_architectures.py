"""Architectures whose layers are easily taken for what they are not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ft2.layers import Projection, projections
from tests.zoo.configs import small_model


def _by_kind(architecture: str) -> dict[str, Projection]:
    return {each.kind: each for each in projections(small_model(architecture))}


def _critical_columns(projection: Projection) -> list[tuple[int, int]]:
    return [(start, stop) for start, stop, critical in projection.columns if critical]


def test_only_the_values_of_phi3s_fused_projection_are_critical() -> None:
    found = _by_kind("phi3")
    assert _critical_columns(found["qkv_proj"]) == [(48, 64)]
    assert _critical_columns(found["gate_up_proj"]) == [(48, 96)]


def test_the_values_of_each_head_are_found_where_heads_are_interleaved() -> None:
    assert _critical_columns(_by_kind("gpt_neox")["query_key_value"]) == [
        (start + 16, start + 24) for start in range(0, 96, 24)
    ]


def test_an_activation_that_is_written_out_ends_a_path() -> None:
    up = _by_kind("apertus")["up_proj"]
    assert not up.critical
    assert "XIELUActivation" in up.reason


def test_a_recurrent_state_is_no_output_of_the_model() -> None:
    key = _by_kind("rwkv")["key"]
    assert not key.critical
    assert "output" not in key.reason


def test_what_goes_into_attention_scores_is_not_said_to_choose_only() -> None:
    assert "only decides" not in _by_kind("gpt_oss")["q_proj"].reason


def test_a_layer_that_is_named_by_a_number_is_known_by_the_name_before_it() -> None:
    reasons = [each.reason for each in projections(small_model("ctrl"))]
    assert not any("reaches 0" in reason or "reaches 2" in reason for reason in reasons)


def test_listing_leaves_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    projections(small_model("llama", seed=3))
    assert torch.get_num_threads() == before


def test_threads_that_list_layers_together_leave_compilation_on() -> None:
    def listing(seed: int) -> int:
        return len(projections(small_model("llama", seed=seed)))

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(listing, range(16))) == {14}
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(3))
    assert graphs
