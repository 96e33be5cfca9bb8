"""FT2-recompute: a wrong step is seen, thrown away and computed again, and nothing else changes."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import StaticCache, TextStreamer
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

import ft2
from ft2 import native
from ft2.faults.formats import format_of
from ft2.layers import UnsupportedModelError
from ft2.protection import detection
from tests.protection.watch import generate, prompts
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.zoo.configs import small_model

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
_LAYER = "model.layers.1.mlp.up_proj"


def _fault(model: Any, step: int, row: int = 0, layer: str = _LAYER, position: int = 0) -> Any:
    highest = format_of(model.dtype).width - 2
    return ft2.Fault(0, step, layer, row, position, 7, (highest,))


def _counted(protection: ft2.Protection) -> list[tuple[int, list[int], list[int], list[int], Any]]:
    return [astuple(each) for each in protection.recomputations]


def _padded(ids: Tensor) -> Tensor:
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return mask


@contextmanager
def _stuck(model: Any, layer: str = _LAYER, value: float = 3e4) -> Generator[None, None, None]:
    """A permanent fault: one element of a layer is the same wrong number in all forwards."""

    def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, -1, 3] = value
        return output

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("padding", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fault_in_any_step_leaves_no_trace_in_the_answer(
    architecture: str, dtype: torch.dtype, padding: bool
) -> None:
    model = tiny_model(architecture, dtype)
    ids = prompts(3)
    mask = _padded(ids) if padding else None
    expected = generate(model, ids, mask, max_new_tokens=6)
    layers = [each.name for each in ft2.projections(model)]
    with ft2.protect(model, "ft2-recompute") as quiet:
        assert torch.equal(generate(model, ids, mask, max_new_tokens=6), expected)
    assert _counted(quiet) == [(3, [0] * 3, [0] * 3, [0] * 3, [0] * 3)]
    for number, layer in enumerate(layers):
        step = number % 4
        fault = _fault(model, step, 1, layer, position=0 if step else 5)
        with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, fault) as injection:
            assert torch.equal(generate(model, ids, mask, max_new_tokens=6), expected)
        assert injection.landed
        assert handle.counts == [0, 1, 0]
        assert _counted(handle) == [(3, [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0])]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("architecture", ["llama", "sliding", "falcon_h1", "lfm2"])
def test_every_kind_of_cache_is_put_back(architecture: str, cache: str) -> None:
    model: Any
    if architecture == "sliding":
        model = tiny_model("mistral", sliding_window=6)
    else:
        model = tiny_model() if architecture == "llama" else small_model(architecture)
    if cache == "static" and architecture == "lfm2":
        pytest.skip("its states are static as they are")
    options: dict[str, Any] = {"max_new_tokens": 8, "disable_compile": True}
    if cache == "static":
        options["cache_implementation"] = "static"
    ids = prompts(2) % 50 + 4
    expected = generate(model, ids, **options)
    layer = ft2.projections(model)[-1].name
    for step in (0, 1, 5):
        fault = ft2.Fault(0, step, layer, 1, 0, 7, (30,))
        with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, fault) as injection:
            assert torch.equal(generate(model, ids, **options), expected)
        assert injection.landed
        assert handle.counts == [0, 1]


def test_rows_beside_a_faulty_one_keep_every_bit_of_what_they_computed() -> None:
    model: Any = tiny_model()
    ids = prompts(3)
    options = {"output_hidden_states": True, "use_cache": True}
    seen: list[Any] = []

    def noisy(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        # What a run adds to its numbers tells which run they are from.
        return output * (1 + 1e-6 * len(seen))

    first = model.model.layers[0].input_layernorm.register_forward_hook(noisy)
    with torch.no_grad():
        plain = model(ids, **options)
        with (
            ft2.protect(model, "ft2-recompute") as handle,
            ft2.inject(model, _fault(model, 0, row=1)),
        ):
            count = model.get_submodule("lm_head").register_forward_hook(
                lambda *args: seen.append(None)
            )
            mixed = model(ids, **options)
            count.remove()
        again = model(ids, **options)
    first.remove()
    assert len(seen) == 2
    assert handle.counts == [0, 1, 0]
    assert not torch.equal(plain.logits[1], again.logits[1])
    for row, source in enumerate((plain, None, plain)):
        if source is None:
            continue
        assert torch.equal(mixed.logits[row], source.logits[row])
        for got, expected in zip(mixed.hidden_states, source.hidden_states, strict=True):
            assert torch.equal(got[row], expected[row])
        for got, expected in zip(
            mixed.past_key_values.layers, source.past_key_values.layers, strict=True
        ):
            assert torch.equal(got.keys[row], expected.keys[row])
            assert torch.equal(got.values[row], expected.values[row])


def test_sampling_goes_on_with_the_random_numbers_it_would_have_had() -> None:
    model = tiny_model()
    ids = prompts(2)
    options: Any = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 8}
    torch.manual_seed(3)
    expected = generate(model, ids, **options)
    torch.manual_seed(3)
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, _fault(model, 2, 1)):
        assert torch.equal(generate(model, ids, **options), expected)
    assert handle.counts == [0, 1]


def test_random_numbers_drawn_in_a_forward_are_drawn_once() -> None:
    model: Any = tiny_model()
    layer = model.model.layers[0]
    hook = layer.register_forward_hook(lambda module, given, output: output + torch.rand(()) * 1e-3)
    ids = prompts(1)
    torch.manual_seed(3)
    expected = generate(model, ids, max_new_tokens=8), torch.rand(1)
    torch.manual_seed(3)
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, _fault(model, 2)):
        said = generate(model, ids, max_new_tokens=8)
    assert torch.equal(said, expected[0])
    assert torch.equal(torch.rand(1), expected[1])
    assert handle.counts == [1]
    hook.remove()


def test_beams_and_streamers_see_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    ids = prompts(2)
    beams: Any = {"num_beams": 3, "max_new_tokens": 6}
    expected = generate(model, ids, **beams)
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, _fault(model, 2, 4)):
        assert torch.equal(generate(model, ids, **beams), expected)
    assert handle.counts == [0, 1], "the fifth of six beams is the second prompt's"

    class Words:
        def decode(self, tokens: Any, **options: Any) -> str:
            return f"{torch.as_tensor(tokens).tolist()}\n"

    streamed = []
    for faults in ([], [_fault(model, 2)]):
        with ft2.protect(model, "ft2-recompute"), ft2.inject(model, faults):
            streamer = TextStreamer(Words())
            generate(model, ids[:1], max_new_tokens=6, streamer=streamer)
        streamed.append(capsys.readouterr().out)
    assert streamed[0] == streamed[1] != ""


def test_a_loop_by_hand_gets_the_right_logits_and_its_steps_are_counted_once() -> None:
    model: Any = tiny_model()

    def loop() -> list[Tensor]:
        logits, ids, cache = [], prompts(2), DynamicCache(config=model.config)
        with torch.no_grad():
            for _ in range(5):
                output = model(ids, past_key_values=cache, use_cache=True)
                logits.append(output.logits[:, -1])
                ids = logits[-1].argmax(-1, keepdim=True)
        assert cache.get_seq_length() == 9 + 4
        return logits

    expected = loop()
    faults = [_fault(model, 1), _fault(model, 3, row=1)]
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, faults) as injections:
        for got, wanted in zip(loop(), expected, strict=True):
            assert torch.equal(got, wanted)
    assert all(each.landed for each in injections)
    assert handle.counts == [1, 1]


@pytest.mark.parametrize("chunk", [4, 5])
def test_a_prompt_in_chunks_is_one_first_token_whose_faults_are_all_found(chunk: int) -> None:
    model = tiny_model()
    ids = prompts(2, tokens=12)
    options: Any = {"max_new_tokens": 5, "prefill_chunk_size": chunk}
    expected = generate(model, ids, **options)
    # Struck in each chunk: a recomputation counts no positions.
    faults = [_fault(model, 0, row=1, position=position) for position in (1, 6, 11)]
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, faults) as injections:
        assert torch.equal(generate(model, ids, **options), expected)
    assert [each.landed for each in injections] == [True] * 3
    assert handle.counts == [0, 3]


def test_a_permanent_fault_is_kept_and_counted_and_never_looped_on() -> None:
    model = tiny_model()
    ids = prompts(2)
    with _stuck(model):
        broken = generate(model, ids, max_new_tokens=5)
        forwards: list[None] = []
        count = model.register_forward_hook(lambda *args: forwards.append(None))
        with (
            ft2.protect(model, "ft2-recompute") as handle,
            pytest.warns(UserWarning, match=f"found {_LAYER} as before"),
        ):
            assert torch.equal(generate(model, ids, max_new_tokens=5), broken)
        count.remove()
    assert len(forwards) == 10
    assert _counted(handle) == [(2, [5, 0], [5, 0], [0, 0], [5, 0])]
    assert handle.counts == [0, 0]


def test_a_transient_fault_beside_a_permanent_one_is_still_corrected() -> None:
    model = tiny_model()
    ids = prompts(2)
    with _stuck(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = generate(model, ids, max_new_tokens=5)
        fault = _fault(model, 2, row=1, layer="model.layers.0.self_attn.v_proj")
        with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, fault):
            assert torch.equal(generate(model, ids, max_new_tokens=5), expected)
    assert _counted(handle) == [(2, [5, 1], [5, 1], [0, 1], [5, 0])]


def test_a_second_fault_in_the_recomputation_is_thrown_away_too() -> None:
    model = tiny_model()
    ids = prompts(1)
    expected = generate(model, ids, max_new_tokens=4)
    seen: list[None] = []

    def strike_twice(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        seen.append(None)
        # The third and fourth run of the layer are step 2, and step 2 again.
        if len(seen) in (3, 4):
            output = output.clone()
            output[0, -1, len(seen)] = 1e9
        return output

    hook = model.get_submodule(_LAYER).register_forward_hook(strike_twice)
    with ft2.protect(model, "ft2-recompute") as handle:
        assert torch.equal(generate(model, ids, max_new_tokens=4), expected)
    hook.remove()
    assert _counted(handle) == [(1, [1], [2], [1], [0])]


def test_rows_that_have_ended_and_padding_are_never_recomputed_for() -> None:
    model: Any = tiny_model()
    ids = prompts(2)
    said = generate(model, ids, max_new_tokens=6)[0, ids.shape[1] :]
    end = int(said[1])
    options: Any = {"max_new_tokens": 6, "eos_token_id": end}
    assert end not in generate(model, ids, max_new_tokens=6)[1, ids.shape[1] :]
    expected = generate(model, ids, **options)
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, _fault(model, 4)) as hit:
        assert torch.equal(generate(model, ids, **options), expected)
    assert hit.landed
    assert handle.counts == [0, 0], "the first row has ended by then"
    mask = _padded(ids)
    expected = generate(model, ids, mask, max_new_tokens=6)
    fault = _fault(model, 0, position=2)
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, fault) as hit:
        generate(model, ids, mask, max_new_tokens=6)
    assert hit.landed
    assert _counted(handle)[0][1] == [0, 0], "padding stands there"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds_alone_see_what_leaves_them_after_the_first_token(dtype: torch.dtype) -> None:
    model = tiny_model("opt", dtype)
    ids = prompts(2)
    options: Any = {"detect": "bounds", "scale": 4.0}
    expected = generate(model, ids)
    with ft2.protect(model, "ft2-recompute", **options) as quiet:
        assert torch.equal(generate(model, ids), expected)
    assert quiet.counts == [0, 0]
    assert quiet.left_first_token
    fault = _fault(model, 3, 1, "model.decoder.layers.1.fc2")
    with ft2.protect(model, "ft2-recompute", **options) as handle, ft2.inject(model, fault):
        assert torch.equal(generate(model, ids), expected)
    assert handle.counts == [0, 1]


def test_bounds_of_the_first_token_come_from_a_profile_and_nowhere_else() -> None:
    model = tiny_model("opt")
    ids = prompts(1)
    layer = "model.decoder.layers.1.fc2"
    fault = _fault(model, 0, 0, layer, position=3)
    expected = generate(model, ids)
    with ft2.protect(model, "ft2-recompute", detect="bounds", scale=4.0) as handle:
        generate(model, ids)
        with ft2.inject(model, fault):
            generate(model, ids)
    assert handle.counts[1] == 0
    profile = ft2.profile(model, ids, "ft2-offline", progress=False)
    options: Any = {"detect": "bounds", "scale": 4.0, "bounds": profile}
    with ft2.protect(model, "ft2-recompute", **options) as handle, ft2.inject(model, fault):
        assert torch.equal(generate(model, ids), expected)
    assert handle.counts == [1]


def test_a_genuine_outlier_is_kept_and_its_bounds_are_the_requests_own() -> None:
    model: Any = tiny_model("opt")
    ids = prompts(2)
    expected = generate(model, ids)
    # Bounds as they were learned: later tokens go beyond, without any fault.
    options: Any = {"detect": "bounds", "scale": 1.0}
    with (
        pytest.warns(UserWarning, match="the value is genuine"),
        ft2.protect(model, "ft2-recompute", **options) as handle,
    ):
        assert torch.equal(generate(model, ids), expected)
    together = handle.recomputations[0]
    assert together.corrected == [0, 0]
    assert sum(together.kept) > 0
    for row in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with ft2.protect(model, "ft2-recompute", **options) as alone:
                generate(model, ids[row : row + 1])
        assert alone.recomputations[0].kept == [together.kept[row]]


def test_bounds_learn_nothing_from_a_first_token_that_was_thrown_away() -> None:
    model = tiny_model("opt")
    ids = prompts(2)
    learned = []
    options: Any = {"detect": "checksums+bounds"}
    for faults in ([], [_fault(model, 0, 1, "model.decoder.layers.1.fc2", position=3)]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with (
                ft2.protect(model, "ft2-recompute", **options) as handle,
                ft2.inject(model, faults),
            ):
                generate(model, ids)
        policy: Any = handle.policy
        learned.append(policy._watched[0]._held[0].learned[0])
    assert handle.counts == [0, 1]
    assert torch.equal(learned[0], learned[1])


@pytest.mark.parametrize("group", [0, 4, 8])
def test_smaller_groups_of_columns_see_smaller_errors(group: int) -> None:
    model = tiny_model("llama", torch.bfloat16, hidden_size=64, intermediate_size=128)
    ids = prompts(1)
    seen = 0
    for neuron in range(16):
        for bit in (5, 6, 7):
            fault = ft2.Fault(0, 2, _LAYER, 0, 0, neuron, (bit,))
            with (
                ft2.protect(model, "ft2-recompute", group=group) as handle,
                ft2.inject(model, fault),
            ):
                generate(model, ids, max_new_tokens=3)
            seen += sum(handle.counts)
    _SEEN[group] = seen
    if len(_SEEN) == 3:
        assert _SEEN[0] < _SEEN[8] <= _SEEN[4]


_SEEN: dict[int, int] = {}


def test_without_native_operations_torch_checks_and_sees_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = native.NativeStatus(*[native.LibraryStatus(False, "left out")] * 2)
    monkeypatch.setattr(detection, "load", lambda: status)
    model = tiny_model()
    ids = prompts(2)
    expected = generate(model, ids, max_new_tokens=5)
    for detect in ("checksums", "checksums+bounds"):
        options: Any = {"detect": detect, "scale": 20.0}
        for step in (0, 2):
            fault = _fault(model, step, 1)
            with ft2.protect(model, "ft2-recompute", **options) as handle, ft2.inject(model, fault):
                assert torch.equal(generate(model, ids, max_new_tokens=5), expected)
            assert handle.counts == [0, 1]


def test_on_detection_is_told_of_the_step_once() -> None:
    model = tiny_model()
    heard: list[ft2.Detection] = []
    with (
        ft2.protect(model, "ft2-recompute", on_detection=heard.append),
        ft2.inject(model, _fault(model, 2, 1)),
    ):
        generate(model, prompts(2), max_new_tokens=5)
    assert heard == [ft2.Detection(0, 2, (0, 1))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["compiled", "static"])
def test_a_compiled_forward_is_checked_outside_and_computed_again(mode: str) -> None:
    torch._dynamo.reset()
    model: Any = tiny_model(num_hidden_layers=1)
    ids = prompts(2)

    def loop(forward: Any) -> list[Tensor]:
        cache: Any = (
            DynamicCache(config=model.config)
            if mode == "compiled"
            else StaticCache(config=model.config, max_cache_len=20)
        )
        logits, fed = [], ids
        with torch.no_grad():
            for step in range(4):
                call = model if step == 0 else forward
                output = call(input_ids=fed, past_key_values=cache, use_cache=True)
                logits.append(output.logits[:, -1].clone())
                fed = logits[-1].argmax(-1, keepdim=True)
        return logits

    compiled = torch.compile(model, backend="eager", dynamic=True)
    expected = loop(compiled)
    fault = _fault(model, 2, 1, "model.layers.0.mlp.up_proj")
    with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, fault) as injection:
        got = loop(compiled)
    torch._dynamo.reset()
    assert injection.landed
    assert handle.counts == [0, 1]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_inference_mode_and_gradients_change_nothing() -> None:
    model: Any = tiny_model()
    ids = prompts(2)
    expected = generate(model, ids, max_new_tokens=4)
    fault = _fault(model, 2, 1)
    with torch.inference_mode(), ft2.protect(model, "ft2-recompute") as handle:
        with ft2.inject(model, fault):
            assert torch.equal(generate(model, ids, max_new_tokens=4), expected)
        assert handle.counts == [0, 1]
    with ft2.protect(model, "ft2-recompute") as handle:
        generate(model, ids, max_new_tokens=4)
        with torch.inference_mode():
            generate(model, ids, max_new_tokens=4)
        with ft2.inject(model, _fault(model, 0, 1, position=2)):
            loss = model(ids, labels=ids).loss
        loss.backward()
    assert handle.counts[-2:] == [0, 1]
    got = model.get_submodule(_LAYER).weight.grad.clone()
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    torch.testing.assert_close(got, model.get_submodule(_LAYER).weight.grad)


def test_outputs_that_a_model_adds_to_in_place_are_no_false_alarm() -> None:
    model: Any = small_model("falcon")
    ids = prompts(2) % 50 + 4
    expected = generate(model, ids, max_new_tokens=5)
    for inference in (False, True):
        with torch.inference_mode(inference), ft2.protect(model, "ft2-recompute") as handle:
            assert torch.equal(generate(model, ids, max_new_tokens=5), expected)
        assert _counted(handle)[-1][1] == [0, 0]
    layer = ft2.projections(model)[-1].name
    with (
        ft2.protect(model, "ft2-recompute") as handle,
        ft2.inject(model, ft2.Fault(0, 2, layer, 1, 0, 7, (30,))),
    ):
        assert torch.equal(generate(model, ids, max_new_tokens=5), expected)
    assert handle.counts == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "architecture", ["mixtral", "gpt_oss", "dbrx", "qwen3_next", "deepseek_v3"]
)
def test_faults_in_experts_and_routers_leave_no_trace(
    architecture: str, dtype: torch.dtype
) -> None:
    model: Any = small_model(architecture).to(dtype)
    ids = prompts(2) % 50 + 4
    mask = _padded(ids)
    expected = generate(model, ids, mask, max_new_tokens=4)
    with ft2.protect(model, "ft2-recompute") as quiet:
        assert torch.equal(generate(model, ids, mask, max_new_tokens=4), expected)
    assert _counted(quiet)[0][1] == [0, 0]
    products = [each for each in ft2.projections(model) if each.weight is not None]
    bit = format_of(dtype).width - 2
    landed = 0
    for each in products[::3]:
        for step in (0, 2):
            fault = ft2.Fault(0, step, each.name, 1, 6 if step == 0 else 0, 1, (bit,))
            with ft2.protect(model, "ft2-recompute") as handle, ft2.inject(model, fault) as hit:
                assert torch.equal(generate(model, ids, mask, max_new_tokens=4), expected)
            # An expert that the token was not routed to computed nothing.
            assert handle.counts == [0, int(hit.landed)]
            landed += hit.landed
    assert landed > 0


class _Remembering(nn.Module):
    """Adds up what it was given, over forwards."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sum = torch.zeros(())

    def forward(self, hidden: Tensor) -> Tensor:
        self.sum = self.sum + hidden.mean()
        out: Tensor = self.inner(hidden) + self.sum
        return out


class _Counting(_Remembering):
    """Keeps it in a buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        del self.sum
        self.register_buffer("count", torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        assert isinstance(self.count, Tensor)
        self.count.add_(1)
        out: Tensor = self.inner(hidden)
        return out


@pytest.mark.parametrize("architecture", ["rwkv", "reformer", "xlstm"])
def test_a_state_that_is_passed_along_and_written_to_is_refused(architecture: str) -> None:
    model = small_model(architecture)
    ids = prompts(1) % 50 + 4
    with (
        ft2.protect(model, "ft2-recompute"),
        pytest.raises(ValueError, match=r"undo (that|a forward that writes)") as error,
    ):
        generate(model, ids, max_new_tokens=4)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("kind", [_Remembering, _Counting])
def test_a_model_with_a_memory_of_its_own_is_refused(kind: Any) -> None:
    model: Any = tiny_model()
    model.model.layers[1].post_attention_layernorm = kind(
        model.model.layers[1].post_attention_layernorm
    )
    with (
        ft2.protect(model, "ft2-recompute"),
        pytest.raises(UnsupportedModelError, match=r"layernorm\.(sum|count) behind") as error,
    ):
        generate(model, prompts(1), max_new_tokens=3)
    assert str(error.value).count(". ") == 0


def test_a_cache_made_by_hand_is_refused() -> None:
    class Own(DynamicLayer):
        pass

    model: Any = tiny_model()
    cache = Cache(layers=[Own() for _ in range(2)])
    with (
        ft2.protect(model, "ft2-recompute"),
        torch.no_grad(),
        pytest.raises(ValueError, match=r"ft2-recompute cannot undo a forward that writes"),
    ):
        model(prompts(1), past_key_values=cache)
    assert not cache.layers[0].is_initialized


def test_what_has_no_checksum_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="a raw parameter, which has checksums only"):
        ft2.protect(small_model("mixtral"), "ft2-recompute", detect="bounds")
    double = tiny_model().double()
    with pytest.raises(UnsupportedModelError, match=r"fp16, bf16 and fp32 layers, not torch\.flo"):
        ft2.protect(double, "ft2-recompute")

    class Own(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden) * 2

    model: Any = tiny_model()
    model.model.layers[0].mlp.up_proj = Own(16, 24, bias=False)
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\.mlp\.up_proj .* its forward computes"
    ):
        ft2.protect(model, "ft2-recompute")
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear


def test_autocast_is_refused_when_it_runs() -> None:
    model = tiny_model()
    with (
        ft2.protect(model, "ft2-recompute"),
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match="cannot check products under autocast"),
    ):
        generate(model, prompts(1), max_new_tokens=2)


def test_settings_that_make_no_sense_are_refused() -> None:
    model = tiny_model()
    for options, sentence in [
        ({"detect": "magic"}, "nothing detects by 'magic': use one of checksums, bounds"),
        ({"group": -1}, "group is a number of columns"),
        ({"correction": "clip"}, "ft2-recompute computes again"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            ft2.protect(model, "ft2-recompute", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="detect and group are for ft2-recompute"):
        ft2.protect(model, "ft2", group=8)
    profile = ft2.profile(model, prompts(1), "ft2-offline", progress=False)
    with pytest.raises(ValueError, match=r"profiled bounds need detect='checksums\+bounds'"):
        ft2.protect(model, "ft2-recompute", detect="checksums", bounds=profile)
    with ft2.protect(model, "ft2-recompute"):
        with pytest.raises(ValueError, match="is under ft2-recompute already"):
            ft2.protect(model, "ft2-recompute")
        with ft2.inject(model, _fault(model, 0)):
            generate(model, prompts(1), max_new_tokens=2)
    with ft2.protect(model, "ft2-recompute"):
        pass


def test_a_forward_that_fails_leaves_no_flag_behind() -> None:
    model: Any = tiny_model()
    ids = prompts(1)
    expected = generate(model, ids, max_new_tokens=3)
    failing: list[bool] = [True]

    def fail(*args: Any) -> None:
        if failing.pop():
            raise RuntimeError("lost")

    with ft2.protect(model, "ft2-recompute") as handle:
        hook = model.lm_head.register_forward_hook(fail)
        with ft2.inject(model, _fault(model, 0)), pytest.raises(RuntimeError, match="lost"):
            generate(model, ids, max_new_tokens=3)
        hook.remove()
        assert torch.equal(generate(model, ids, max_new_tokens=3), expected)
    assert sum(handle.counts) == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_large_error_strikes_anywhere_the_answer_is_the_golden_one(data: Any) -> None:
    model = _SHARED["model"]
    ids = prompts(2)
    layers = ft2.projections(model)
    layer = data.draw(st.sampled_from(layers))
    step = data.draw(st.integers(0, 4))
    fault = ft2.Fault(
        0,
        step,
        layer.name,
        data.draw(st.integers(0, 1)),
        data.draw(st.integers(0, 8)) if step == 0 else 0,
        data.draw(st.integers(0, layer.out_features - 1)),
        (data.draw(st.sampled_from([24, 26, 28, 29, 30, 31])),),
    )
    with ft2.protect(model, "ft2-recompute"), ft2.inject(model, fault) as injection:
        assert torch.equal(generate(model, ids, max_new_tokens=5), _SHARED["expected"])
    assert injection.landed


_SHARED: dict[str, Any] = {"model": tiny_model()}
_SHARED["expected"] = generate(_SHARED["model"], prompts(2), max_new_tokens=5)
