"""The arithmetic of range restriction: learn bounds, widen them, clip to them.

Everything is computed in fp32 (fp64 for fp64 layers) and without waiting for the device. The
functions are plain torch, so that ``torch.compile`` can fold them into their neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "bounds_dtype",
    "clean_vectors",
    "clip",
    "count_corrected",
    "learn",
    "record_vectors",
    "restrict",
    "widen",
]


def bounds_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which bounds of a layer with outputs of `dtype` are kept."""
    return torch.promote_types(dtype, torch.float32)


def learn(
    output: Tensor,
    real: Tensor | None,
    low: Tensor,
    high: Tensor,
    corrected: Tensor,
) -> Tensor:
    """Correct what is certainly wrong in the first token, and widen the bounds to the rest.

    NaN becomes 0 before the minimum and maximum are taken; ±Inf becomes the type's largest number
    and is left out of them (FT2, section 4.2.2, which leaves Inf open).

    Parameters
    ----------
    output:
        (rows, tokens, columns), any floating-point dtype.
    real:
        bool (rows, tokens), False at padding; None when all tokens are real.
    low, high:
        (requests,), where rows is a multiple of requests; updated in place. Start them at +inf
        and -inf.
    corrected:
        int64 (requests,), counts the corrected values of real tokens; updated in place.

    Returns
    -------
    Tensor
        The corrected output, in the shape and dtype of `output`.
    """
    clean = torch.nan_to_num(output, nan=0.0)
    seen = clean.detach()
    wrong = ~torch.isfinite(output.detach())
    counted = ~torch.isinf(output.detach())
    if real is not None:
        wrong = wrong & real[..., None]
        counted = counted & real[..., None]
    requests = low.shape[0]
    # Which zero a minimum returns depends on how it was computed; a bound of zero is +0.
    lowest = torch.where(counted, seen, torch.inf).reshape(requests, -1).amin(1) + 0.0
    highest = torch.where(counted, seen, -torch.inf).reshape(requests, -1).amax(1) + 0.0
    low.copy_(torch.minimum(low, lowest.to(low.dtype)))
    high.copy_(torch.maximum(high, highest.to(high.dtype)))
    corrected.add_(wrong.reshape(requests, -1).sum(1))
    return clean


def widen(
    low: Tensor, high: Tensor, scale: float, dtype: torch.dtype, rows: int
) -> tuple[Tensor, Tensor]:
    """Widen learned bounds, for the tokens after the first.

    A bound b becomes b ∓ (scale - 1)·\\|b\\|, so it only ever moves outwards, and stays within the
    type's range. Where nothing was learned, the bounds are the type's range.

    Parameters
    ----------
    low, high:
        (requests,).
    scale:
        At least 1; the paper takes 2 (FT2, section 4.2.1).
    dtype:
        The dtype of the layer's outputs.
    rows:
        Rows of the batch, a multiple of requests.

    Returns
    -------
    tuple of Tensor
        Lower and upper bounds, each (rows, 1, 1) in the dtype of `low`.
    """
    limit = torch.finfo(dtype).max
    unknown = low > high
    below = torch.where(unknown, -limit, low - (scale - 1) * low.abs()).clamp(-limit, limit)
    above = torch.where(unknown, limit, high + (scale - 1) * high.abs()).clamp(-limit, limit)
    repeats = rows // low.shape[0]
    return (
        below.repeat_interleave(repeats)[:, None, None],
        above.repeat_interleave(repeats)[:, None, None],
    )


def restrict(
    output: Tensor, live: Tensor | None, below: Tensor, above: Tensor, corrected: Tensor
) -> Tensor:
    """Clip to the bounds; NaN becomes 0 first (FT2, section 4.3, Take-away 8).

    Parameters
    ----------
    output:
        (rows, tokens, columns), any floating-point dtype.
    live:
        bool (rows, tokens or 1), False where corrections are not counted: padding and rows that
        have ended. None when all count.
    below, above:
        (rows, 1, 1), as :func:`widen` returns them.
    corrected:
        int64 (requests,), where rows is a multiple of requests: counts the values that are other
        ones now; updated in place.

    Returns
    -------
    Tensor
        The restricted output, in the shape and dtype of `output`.
    """
    restricted = clip(output, below, above)
    count_corrected(output, restricted, live, corrected)
    return restricted


def clip(output: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Clip to the bounds as :func:`restrict` does, and count nothing."""
    # Few kernels matter here: in eager mode each one costs a launch in every layer and step.
    # Methods, since compiled code would check each function that it finds in a module.
    return output.nan_to_num(nan=0.0).clamp(below, above).to(output.dtype)


def count_corrected(
    output: Tensor, restricted: Tensor, live: Tensor | None, corrected: Tensor
) -> None:
    """Count the values that :func:`clip` made others; parameters as in :func:`restrict`."""
    wrong = (restricted != output).detach()
    if live is not None:
        wrong = wrong & live[..., None]
    corrected.add_(wrong.reshape(corrected.shape[0], -1).sum(1))


def clean_vectors(
    values: Tensor, counted: Tensor | None, request: Tensor, corrected: Tensor
) -> Tensor:
    """Correct vectors of the first token as :func:`learn` does: NaN to 0, ±Inf saturated.

    Parameters
    ----------
    values:
        (vectors, columns), any floating-point dtype.
    counted:
        bool (vectors,), False at padding; None when all are real.
    request:
        int64 (vectors,): whose each is.
    corrected:
        int64 (requests,), updated in place.
    """
    _count(~torch.isfinite(values.detach()), counted, request, corrected)
    return torch.nan_to_num(values, nan=0.0)


def record_vectors(
    values: Tensor, counted: Tensor | None, cell: Tensor, low: Tensor, high: Tensor
) -> None:
    """Widen bounds to vectors: NaN counts as 0, and ±Inf is left out, as in :func:`learn`.

    Parameters
    ----------
    values:
        (vectors, columns), any floating-point dtype.
    counted:
        bool (vectors,), False for what is left out; None when all count.
    cell:
        int64 (vectors,): which bounds each has.
    low, high:
        (cells,), updated in place.
    """
    seen = torch.nan_to_num(values.detach(), nan=0.0)
    is_seen = ~torch.isinf(values.detach())
    if counted is not None:
        is_seen = is_seen & counted[:, None]
    lowest = torch.where(is_seen, seen, torch.inf).amin(1)
    highest = torch.where(is_seen, seen, -torch.inf).amax(1)
    low.scatter_reduce_(0, cell, lowest.to(low.dtype), "amin")
    high.scatter_reduce_(0, cell, highest.to(high.dtype), "amax")


def _count(wrong: Tensor, counted: Tensor | None, request: Tensor, corrected: Tensor) -> None:
    if counted is not None:
        wrong = wrong & counted[:, None]
    corrected.index_add_(0, request, wrong.sum(1))
