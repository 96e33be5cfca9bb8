"""Forwards that are recorded once and replayed give what they give when each is computed anew.

On a CPU nothing records; there a recording is what computes the forward again, from the same data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ft2.campaign import Recorder, row_graph
from ft2.campaign.batch_engine import BatchEngine, CannotBatchError
from ft2.campaign.prompt import Continuation, Prompt
from ft2.campaign.row_faults import RowFaults, strike_for
from ft2.faults import Draw, Fault, Injection, fault_model, flip, format_of
from tests.tiny_models import tiny_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_CUDA = DEVICE.type == "cuda"
PROMPTS = [
    Prompt(tokens, 12, least=least, ends=(2,))
    for tokens, least in (((1, 5, 9, 11), 0), ((7, 3), 12), ((4, 4, 4, 8, 9, 30), 5))
]

Told = tuple[list[int], bool, float | None, float | None, int]


def again(compute: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
    """Record a forward where nothing does."""
    output = compute()

    def replay() -> None:
        output.logits.copy_(compute().logits)

    output.logits.fill_(torch.nan)
    return replay, output


def strike(values: Tensor, faults: Tensor, before: Tensor, number: int) -> None:
    patterns = values.view(format_of(values.dtype).pattern_dtype)
    for row, (layer, neuron, mask) in enumerate(faults.T.tolist()):
        if layer == number:
            before[row] = patterns[row, neuron]
            patterns[row, neuron] ^= mask


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not ON_CUDA:
        monkeypatch.setattr(row_graph, "recorder_for", lambda device: again)
        monkeypatch.setattr(row_graph, "strike_for", lambda device: strike)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def model(model_type: str) -> Any:
    dtype = torch.float16 if ON_CUDA else torch.float32
    return tiny_model(model_type, dtype=dtype).to(DEVICE)


def sample(prompts: Sequence[Prompt], count: int, encoding: str | None) -> list[tuple[int, Fault]]:
    found = model("llama")
    recorder = Recorder(found)
    for prompt in prompts:
        ids = torch.tensor([prompt.tokens], device=DEVICE)
        found.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12
        )
    recorder.stop()
    space = recorder.golden().space
    draws = (Draw(0, "graph", trial) for trial in range(count))
    faults = [space.sample(draw, fault_model("exp"), encoding) for draw in draws]
    return [(fault.call, fault) for fault in faults]


def told(each: Continuation | None) -> Told | None:
    if each is None:
        return None
    injection = each.injection
    return each.said, injection.landed, injection.before, injection.after, each.corrected


def run(
    engine: BatchEngine, trials: list[tuple[int, Fault]]
) -> tuple[list[tuple[list[int], list[int]]], list[Told | None]]:
    golden = [(row.said, row.corrected) for row in engine.prepare()]
    return golden, [told(each) for each in engine.run(trials)]


def compare(policy: str, encoding: str | None = None, **shape: Any) -> BatchEngine:
    prompts = PROMPTS[:1] if shape.get("fixed") else PROMPTS
    trials = sample(prompts, 120, encoding)
    anew = BatchEngine(model("llama"), prompts, policy, replays=False, **shape)
    replaying = BatchEngine(model("llama"), prompts, policy, **shape)
    expected = run(anew, trials)
    assert repr(run(replaying, trials)) == repr(expected)
    assert anew.spent.replayed == 0
    if policy != "ft2-recompute":
        assert any(each is not None and each[0] != expected[0][0][0] for each in expected[1])
    return replaying


@pytest.mark.parametrize("policy", ["none", "ft2"])
@pytest.mark.parametrize("shape", [{"rows": 16, "fixed": True}, {"rows": 40}])
def test_replayed_forwards_give_what_they_give_anew(policy: str, shape: dict[str, Any]) -> None:
    if not ON_CUDA and not shape.get("fixed"):
        pytest.skip("without kernels for attention, shapes change")
    spent = compare(policy, **shape).spent
    assert spent.not_recorded is None
    # All but the first of each batch.
    assert spent.forwards - 3 <= spent.replayed < spent.forwards


def test_faults_of_another_encoding_are_struck_anew() -> None:
    spent = compare("none", "fp8-e5m2", rows=16, fixed=True).spent
    assert 0 < spent.replayed < spent.forwards - 3


def test_recomputing_is_not_recorded() -> None:
    spent = compare("ft2-recompute", rows=16, fixed=True).spent
    assert spent.replayed == 0
    assert "ft2-recompute" in str(spent.not_recorded)


def test_a_layer_that_a_forward_runs_twice_is_not_struck_twice() -> None:
    found = tiny_model(dtype=model("llama").dtype).to(DEVICE)
    found.model.layers[1].mlp = found.model.layers[0].mlp
    engine = BatchEngine(found, PROMPTS[:1], rows=16, fixed=True)
    with pytest.raises(CannotBatchError, match=r"mlp\..* runs several times in a forward"):
        engine.prepare()


def test_hooks_hear_of_every_forward() -> None:
    found = model("llama")
    heard = []
    handle = found.register_forward_hook(lambda *args: heard.append(args))
    engine = BatchEngine(found, PROMPTS[:1], rows=16, fixed=True)
    engine.prepare()
    handle.remove()
    assert len(heard) == engine.spent.forwards + 1
    assert "hooks" in str(engine.spent.not_recorded)


def test_random_numbers_are_drawn_as_if_nothing_had_been_recorded() -> None:
    torch.manual_seed(3)
    expected = torch.rand(5, device=DEVICE)
    torch.manual_seed(3)
    engine = BatchEngine(model("llama"), PROMPTS[:1], rows=16, fixed=True)
    engine.prepare()
    assert engine.spent.replayed > 0
    assert torch.equal(torch.rand(5, device=DEVICE), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_each_row_is_struck_by_its_fault_alone(dtype: torch.dtype) -> None:
    found = tiny_model(dtype=dtype).to(DEVICE)
    own = strike_for(DEVICE) or strike
    faults = RowFaults(found, 300, own)
    assert faults.unsuited is None
    layer = next(iter(faults._numbers))
    width = format_of(dtype).width
    chosen = [
        (row, Fault(0, 1, layer, row, 0, row % 16, (row % width,))) for row in range(0, 300, 7)
    ]
    faults.send(chosen)
    values = torch.randn(300, 16).to(dtype).to(DEVICE)
    struck = values.clone()
    own(struck, faults._sent, faults.before, faults._numbers[layer])
    expected = values.clone()
    for row, fault in chosen:
        expected[row, fault.neuron] = flip(values[row, fault.neuron], fault.bits, format_of(dtype))
    integers = format_of(dtype).pattern_dtype
    assert torch.equal(struck.view(integers), expected.view(integers))
    injections = [(row, Injection(fault)) for row, fault in chosen]
    faults.finish(injections, faults.before.tolist())
    for row, injection in injections:
        assert injection.landed
        assert injection.before == float(values[row, injection.fault.neuron])
    # Of another layer nothing is struck.
    others = values.clone()
    own(others, faults._sent, faults.before, len(faults._numbers))
    assert torch.equal(others, values)


def test_what_cannot_be_recorded_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = sample(PROMPTS[:1], 60, None)
    expected = run(BatchEngine(model("llama"), PROMPTS[:1], rows=16, fixed=True), trials)
    recorder = row_graph.recorder_for(DEVICE)
    if ON_CUDA:
        assert recorder is not None

        def failing(compute: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
            def waits() -> Any:
                output = compute()
                output.logits.sum().item()
                return output

            return recorder(waits)
    else:

        def failing(compute: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
            raise row_graph.NotRecordedError("it waits")

    monkeypatch.setattr(row_graph, "recorder_for", lambda device: failing)
    torch.manual_seed(3)
    engine = BatchEngine(model("llama"), PROMPTS[:1], rows=16, fixed=True)
    found = run(engine, trials)
    drawn = torch.rand(5, device=DEVICE)
    assert repr(found) == repr(expected)
    assert engine.spent.replayed == 0
    assert engine.spent.not_recorded
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(5, device=DEVICE))
