"""Find the rows and tokens of a batch again in what a layer puts out."""

from __future__ import annotations

from torch import Tensor

from ft2.forward.call import Forward

__all__ = ["by_row", "real_tokens"]


def by_row(output: Tensor, forward: Forward) -> Tensor:
    """View a layer's output as (rows, tokens, columns).

    Some models flatten the batch, (rows · tokens, columns); some layers run on the last tokens
    only, and then `tokens` is theirs.

    Raises
    ------
    RuntimeError
        If the output's shape holds no such rows.
    """
    if output.dim() == 3 and output.shape[0] == forward.rows:
        return output
    columns = output.shape[-1]
    if output.numel() == forward.rows * forward.tokens * columns:
        return output.view(forward.rows, forward.tokens, columns)
    raise RuntimeError(
        f"ft2 cannot tell the rows of a layer's output of shape {tuple(output.shape)} in a "
        f"forward over {forward.rows} rows of {forward.tokens} tokens"
    )


def real_tokens(forward: Forward, tokens: int) -> Tensor | None:
    """Say which of a layer's tokens are real: bool (rows, tokens), None when all are."""
    if forward.real is None:
        return None
    return forward.real[:, forward.tokens - tokens :]
