"""Outputs are checked where they are, at the end of each forward, and nothing of them changes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import StoppingCriteria

import ft2
from ft2 import native
from ft2.forward import Clock, Forward, Listener, tap_in_lane
from ft2.protection import detection
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


class _Noting:
    """A check that notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, seats: list[int], hidden: list[Tensor], outputs: list[Tensor]) -> None:
        self.seen += zip(seats, hidden, outputs, strict=True)


_LAYERS = 3


@contextmanager
def _laned(check: Any) -> Generator[tuple[list[nn.Linear], DetectionLane], None, None]:
    """Linear layers in a lane that knows how many outputs of one token there are."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(_LAYERS)))
    lane = DetectionLane([check])
    taps = tap_in_lane(model, [str(seat) for seat in range(_LAYERS)], lane, [])
    lane.begin(None, 1)
    model(torch.randn(1, 4))
    lane.finish()
    lane.end()
    try:
        yield list(model), lane  # type: ignore[arg-type]
    finally:
        for each in taps:
            each.remove()


_STEPS = st.lists(
    st.one_of(
        st.just(list(range(_LAYERS))),
        st.lists(st.integers(0, _LAYERS - 1), max_size=2 * _LAYERS),
    ),
    min_size=1,
    max_size=4,
)


@given(steps=_STEPS, repeats=st.booleans(), most=st.sampled_from([4, 8, 1000]))
def test_each_run_of_a_layer_is_checked_once_in_its_step_in_whatever_order_layers_run(
    steps: list[list[int]], repeats: bool, most: int
) -> None:
    noting = _Noting()
    with torch.no_grad(), _laned(noting) as (layers, lane), pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "_MOST_KEPT", most)
        begin = lane.repeating(1) if repeats else functools.partial(lane.begin, None, 1)
        for step in steps:
            begin()
            noting.seen.clear()
            ran = []
            for seat in step:
                hidden = torch.randn(1, 4)
                ran.append((seat, hidden, layers[seat](hidden)))
            lane.finish()
            seen = [(seat, id(one), id(other)) for seat, one, other in noting.seen]
            assert sorted(seen) == sorted((seat, id(one), id(other)) for seat, one, other in ran)
            outputs = [(each.seat, id(each.hidden), id(each.values)) for each in lane.outputs]
            assert outputs == (seen if most == 1000 else seen[len(seen) - len(outputs) :])
            lane.end()
            assert lane.outputs == []


def test_what_a_step_left_goes_layer_by_layer_as_the_next_one_runs() -> None:
    with torch.no_grad(), _laned(lambda *_: None) as (layers, lane):
        begin = lane.repeating(1)
        begin()
        left = [weakref.ref(layer(torch.randn(1, 4))) for layer in layers]
        lane.finish()
        lane.end()
        begin()
        for ran, layer in enumerate(layers):
            layer(torch.randn(1, 4))
            assert [each() is None for each in left] == [at <= ran for at in range(_LAYERS)]
        last = [weakref.ref(each) for each in lane.slots.outputs] if lane.slots else []
        assert len(last) == _LAYERS
        lane.finish()
        lane.end()
        assert None not in [each() for each in last]
        del begin
        assert {each() for each in last} == {None}


class _Kept:
    """Notes what a protection keeps of the outputs of a ``generate``, step by step.

    Attributes
    ----------
    steps:
        What each step kept.
    at_the_next:
        How much of that was there when the next step was checked.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[weakref.ref[Tensor]]] = []
        self.at_the_next: list[int] = []
        finish = DetectionLane.finish

        def noting(lane: DetectionLane) -> None:
            finish(lane)
            self.at_the_next += [self.alive(step) for step in self.steps[-1:]]
            self.steps.append([weakref.ref(each.values) for each in lane.outputs])

        monkeypatch.setattr(DetectionLane, "finish", noting)

    @staticmethod
    def alive(step: list[weakref.ref[Tensor]]) -> int:
        """How many of a step's outputs are there."""
        return sum(each() is not None for each in step)


class _Between(StoppingCriteria):
    """Calls something after each step."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __call__(self, ids: Tensor, scores: Tensor, **_: Any) -> Any:
        self._call()
        return torch.zeros(len(ids), dtype=torch.bool)


def test_steps_that_repeat_give_their_outputs_back_one_by_one_and_all_when_generate_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    layers = len(ft2.projections(model))
    kept = _Kept(monkeypatch)
    between: list[int] = []
    note = _Between(lambda: between.append(kept.alive(kept.steps[-1])))
    with ft2.protect(model, "ft2-recompute"):
        generate(model, prompts(2), max_new_tokens=6, stopping_criteria=[note])
        assert [len(each) for each in kept.steps] == [layers] * 6
        # The first token and the step after it are told in full.
        assert between == [0, 0] + [layers] * 4
        assert kept.at_the_next == [0] * 5
        assert [kept.alive(each) for each in kept.steps] == [0] * 6


def test_nothing_is_left_of_outputs_when_generate_is_broken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    kept = _Kept(monkeypatch)

    def break_off() -> None:
        if len(kept.steps) == 4:
            raise KeyboardInterrupt

    with ft2.protect(model, "ft2-recompute"):
        with pytest.raises(KeyboardInterrupt):
            generate(model, prompts(2), max_new_tokens=6, stopping_criteria=[_Between(break_off)])
        assert [kept.alive(each) for each in kept.steps] == [0] * 4
