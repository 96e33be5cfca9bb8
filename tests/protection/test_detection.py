"""Outputs are checked where they are, at the end of each forward, and nothing of them changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ft2
from ft2 import native
from ft2.forward import Clock, Forward, Listener, tap_in_lane
from ft2.protection.detection import BoundsCheck, ChecksumCheck, DetectionLane, summed_weight
from tests.protection.watch import generate, prompts
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.skipif(
    not native.load().cpu.active, reason=f"plain torch only: {native.load().cpu.detail}"
)

_LAYER = "model.layers.1.mlp.up_proj"


class _Detecting(Listener):
    """Checks every linear projection of a model, and notes the flags after each forward."""

    def __init__(self, model: Any, check: Callable[[list[nn.Linear], Tensor], Any]) -> None:
        names = [each.name for each in ft2.projections(model)]
        self.modules: list[nn.Linear] = [model.get_submodule(name) for name in names]
        self.flags = torch.zeros(2, dtype=torch.uint8)
        self.check = check(self.modules, self.flags)
        self.seen: list[list[int]] = []
        self.lane = DetectionLane([self.check])
        self._clock = Clock.listen(model, self)
        self._model = model
        self._taps = tap_in_lane(model, names, self.lane, self._clock.lanes)

    def forward_started(self, forward: Forward) -> None:
        self.lane.begin()

    def forward_finished(self, forward: Forward, output: Any) -> None:
        self.seen.append(self.flags.tolist())
        self.flags.zero_()

    def __enter__(self) -> _Detecting:
        return self

    def __exit__(self, *raised: object) -> None:
        for each in self._taps:
            each.remove()
        self._clock.dismiss(self._model, self)


def _wide_bounds(modules: list[nn.Linear], flags: Tensor) -> BoundsCheck:
    bounds = torch.tensor([[-30.0], [30.0]]).repeat(len(modules), 1, 1)
    return BoundsCheck(bounds, flags)


def _fault(bit: int) -> ft2.Fault:
    return ft2.Fault(call=0, step=2, layer=_LAYER, row=1, position=0, neuron=7, bits=(bit,))


@pytest.mark.parametrize("check", [_wide_bounds, ChecksumCheck])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_row_that_was_struck_is_flagged_in_its_step_and_no_other_ever(
    dtype: torch.dtype, check: Callable[..., Any]
) -> None:
    model = tiny_model("llama", dtype)
    ids = prompts(2)
    expected = generate(model, ids, max_new_tokens=5)
    with _Detecting(model, check) as quiet:
        assert torch.equal(generate(model, ids, max_new_tokens=5), expected)
    assert quiet.seen == [[0, 0]] * 5
    highest = 30 if dtype is torch.float32 else 14
    with _Detecting(model, check) as detecting, ft2.inject(model, _fault(highest)) as injection:
        generate(model, ids, max_new_tokens=5)
    assert injection.landed
    assert [rows[0] for rows in detecting.seen[:3]] == [0, 0, 0]
    assert [rows[1] > 0 for rows in detecting.seen[:3]] == [False, False, True]


@pytest.mark.parametrize("change", ["in place", "loaded", "exchanged", "another type"])
def test_sums_of_a_weight_that_changed_are_taken_again(change: str) -> None:
    model = tiny_model("llama")
    ids = prompts(2)
    with _Detecting(model, ChecksumCheck) as detecting:
        module: Any = model.get_submodule(_LAYER)
        with torch.no_grad():
            match change:
                case "in place":
                    module.weight.mul_(1.5)
                case "loaded":
                    state = {name: each * 1.5 for name, each in model.state_dict().items()}
                    model.load_state_dict(state)
                case "exchanged":
                    module.weight = nn.Parameter(module.weight * 1.5)
                case "another type":
                    model.to(torch.float16)
        if change != "another type":
            generate(model, ids, max_new_tokens=2)
            assert detecting.seen[0] == [native.WRONG_SUM] * 2, "the old sums still stand"
        detecting.check.refresh()
        detecting.seen.clear()
        if change != "another type":
            generate(model, ids, max_new_tokens=2)
            assert detecting.seen == [[0, 0]] * 2
    assert torch.equal(detecting.check._sums[0], summed_weight(detecting.modules[0]))


def test_detection_compiles_into_the_models_own_graph_and_sees_the_same() -> None:
    torch._dynamo.reset()
    model: Any = tiny_model("llama", num_hidden_layers=2)
    ids = prompts(2)
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad(), _Detecting(model, ChecksumCheck) as detecting:
        compiled = torch.compile(model, backend=count)
        compiled(ids, use_cache=False)
        with ft2.inject(model, ft2.Fault(0, 0, _LAYER, 1, 0, 7, (30,))):
            compiled(ids, use_cache=False)
    torch._dynamo.reset()
    assert detecting.seen == [[0, 0], [0, native.WRONG_SUM]]
    targets = [str(node.target) for graph in graphs[:1] for node in graph.graph.nodes]
    assert sum("check_products" in each for each in targets) == 1


def test_checksums_of_groups_of_columns_sum_to_that_of_all() -> None:
    layer = nn.Linear(48, 96)
    whole, groups = summed_weight(layer), summed_weight(layer, group=16)
    assert whole.shape == (1, 49)
    assert groups.shape == (6, 49)
    torch.testing.assert_close(groups.sum(0, keepdim=True), whole)
    assert summed_weight(layer, group=7).shape == (1, 49)


def test_checksums_refuse_a_type_they_have_no_tolerance_for() -> None:
    with pytest.raises(ValueError, match="fp16, bf16 and fp32"):
        ChecksumCheck([nn.Linear(2, 2, dtype=torch.float64)], torch.zeros(1, dtype=torch.uint8))
