"""Find the rows and tokens of a batch again in what a layer puts out."""

from __future__ import annotations

import torch
from torch import Tensor

from ft2.forward.call import Forward

__all__ = ["by_row", "fit_tokens", "holds_rows"]


def by_row(output: Tensor, forward: Forward) -> Tensor:
    """View a layer's output as (rows, tokens, columns).

    Some models flatten the batch, (rows · tokens, columns); some layers run on the last tokens
    only, on cached ones too, or on several streams of them, and then `tokens` is theirs.

    Raises
    ------
    RuntimeError
        If the output's shape holds no such rows.
    """
    if output.dim() == 3 and output.shape[0] == forward.rows:
        return output
    if holds_rows(output, forward.rows):
        return output.view(forward.rows, -1, output.shape[-1])
    raise RuntimeError(
        f"ft2 cannot tell the rows of a layer's output of shape {tuple(output.shape)} in a "
        f"forward over {forward.rows} rows of {forward.tokens} tokens"
    )


def holds_rows(output: Tensor, rows: int) -> bool:
    """Whether :func:`by_row` can tell the rows of a layer's output."""
    if output.dim() == 2:
        return output.shape[0] % rows == 0
    return output.dim() > 2 and output.shape[0] == rows


def fit_tokens(mask: Tensor, tokens: int) -> Tensor:
    """Fit bool (rows, tokens of the forward, or 1) to the tokens of one layer.

    A layer that runs on fewer tokens runs on the last; one that runs on several streams of them
    has the mask for each; what comes before the forward's own tokens (cached ones) is real.
    """
    size = mask.shape[1]
    if size in (1, tokens):
        return mask
    if tokens < size:
        return mask[:, size - tokens :]
    if tokens % size == 0:
        return mask.repeat(1, tokens // size)
    return torch.cat([mask.new_ones(mask.shape[0], tokens - size), mask], dim=1)
