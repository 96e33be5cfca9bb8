"""Rows and tokens found again in a layer's output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ft2.forward import Call, Forward, Order, by_row, fit_tokens, tap
from tests.forward.heard import listening
from tests.tiny_models import tiny_model

_SIZES = st.integers(1, 5)


def _forward(rows: int, tokens: int, real: Tensor | None = None) -> Forward:
    call = Call(index=0, kind="loop")
    return Forward(call=call, step=0, rows=rows, tokens=tokens, cached=0, real=real)


@given(_SIZES, _SIZES, _SIZES)
def test_a_flattened_batch_is_seen_by_rows_again(rows: int, tokens: int, columns: int) -> None:
    output = torch.arange(rows * tokens * columns).reshape(rows, tokens, columns)
    forward = _forward(rows, tokens)
    assert by_row(output, forward) is output
    view = by_row(output.reshape(rows * tokens, columns), forward)
    assert torch.equal(view, output)
    assert view.data_ptr() == output.data_ptr()


@given(_SIZES, _SIZES)
def test_a_layer_of_the_last_tokens_only_keeps_its_own_number(rows: int, tokens: int) -> None:
    output = torch.zeros(rows, 1, 3)
    real = torch.zeros(rows, tokens, dtype=torch.bool)
    real[:, -1] = True
    assert by_row(output, _forward(rows, tokens, real)).shape == (rows, 1, 3)
    assert fit_tokens(real, 1).tolist() == [[True]] * rows


@given(_SIZES, _SIZES, st.integers(2, 4))
def test_each_stream_of_the_tokens_has_their_mask(rows: int, tokens: int, streams: int) -> None:
    real = torch.zeros(rows, tokens + 1, dtype=torch.bool)
    real[:, 0] = True
    streamed = fit_tokens(real, streams * (tokens + 1))
    assert streamed.view(rows, streams, tokens + 1).equal(real[:, None].expand(-1, streams, -1))


def test_cached_tokens_that_a_layer_computes_again_are_real() -> None:
    real = torch.tensor([[False, True, True]])
    assert fit_tokens(real, 5).tolist() == [[True, True, False, True, True]]


@given(_SIZES, _SIZES, _SIZES)
def test_an_output_with_more_dimensions_keeps_its_rows(rows: int, inner: int, tokens: int) -> None:
    output = torch.arange(rows * inner * tokens * 2.0).view(rows, inner, tokens, 2)
    view = by_row(output, _forward(rows, tokens))
    assert view.equal(output.view(rows, inner * tokens, 2))


def test_an_output_without_such_rows_is_refused_by_its_shape() -> None:
    with pytest.raises(RuntimeError, match=r"\(7, 2\) in a forward over 2 rows of 3 tokens"):
        by_row(torch.zeros(7, 2), _forward(2, 3))


def test_the_rows_of_a_batch_are_those_of_each_prompt_alone() -> None:
    model = tiny_model("opt")
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    seen: list[Tensor] = []

    def note(output: Tensor) -> Tensor:
        seen.append(by_row(output, heard_forward()))
        return output

    def heard_forward() -> Forward:
        return _forward(*ids.shape)

    attached = tap(model.model.decoder.layers[0].fc1, Order.OBSERVE, note)
    with listening(model):
        for ids in (prompts, prompts[:1], prompts[1:]):
            model(ids)
    attached.remove()
    batch, *alone = seen
    for row, single in enumerate(alone):
        torch.testing.assert_close(batch[row : row + 1], single)
