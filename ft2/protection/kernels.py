"""Restrict values by the fastest means that is there, with the same outcome bit for bit.

Native operations in eager mode; plain torch under ``torch.compile``, so that it can be folded into
the neighbouring kernels, for layers that record gradients, and where the native library is not
there or does not know the type. ``python -m ft2 doctor`` says which one is active and why.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ft2.native import Operations, load, operations
from ft2.protection import arithmetic

__all__ = ["learn", "native_operations", "restrict"]

_NATIVE_TYPES = frozenset((torch.float16, torch.bfloat16, torch.float32))


def learn(output: Tensor, real: Tensor | None, bounds: Tensor, corrected: Tensor) -> Tensor:
    """Correct what is certainly wrong in the first token, and widen the bounds to the rest.

    As :func:`ft2.protection.arithmetic.learn`; the output may be changed in place.

    Parameters
    ----------
    output:
        (rows, tokens, columns), any floating-point dtype.
    real:
        bool (rows, tokens), False at padding; None when all tokens are real.
    bounds:
        (2, requests), lower ones first, contiguous; updated in place.
    corrected:
        int64 (requests,); updated in place.
    """
    native = _native(output)
    if native is None:
        return arithmetic.learn(output, real, bounds[0], bounds[1], corrected)
    if real is None:
        native.record_(output, bounds, corrected)
    else:
        native.record_(output, bounds, corrected, real)
    return output


def restrict(output: Tensor, live: Tensor | None, bounds: Tensor, corrected: Tensor) -> Tensor:
    """Clip to the bounds; NaN becomes 0 first.

    As :func:`ft2.protection.arithmetic.restrict`; the output may be changed in place.

    Parameters
    ----------
    output:
        (rows, tokens, columns), any floating-point dtype.
    live:
        bool (rows, tokens or 1), False where corrections are not counted; None when all count.
    bounds:
        (2, requests), lower ones first, contiguous.
    corrected:
        int64 (requests,); updated in place.
    """
    native = _native(output)
    if native is None:
        by_row = bounds.repeat_interleave(output.shape[0] // bounds.shape[1], 1)
        below, above = by_row[0, :, None, None], by_row[1, :, None, None]
        return arithmetic.restrict(output, live, below, above, corrected)
    if live is None:
        native.restrict_(output, bounds, corrected)
    else:
        native.restrict_(output, bounds, corrected, live)
    return output


def native_operations(device: torch.device, dtype: torch.dtype) -> Operations | None:
    """Return the native operations if they serve outputs of that kind, else None."""
    return _native_for(device.type) if dtype in _NATIVE_TYPES else None


def _native(output: Tensor) -> Operations | None:
    if torch.compiler.is_compiling() or output.requires_grad:
        return None
    return native_operations(output.device, output.dtype)


@functools.cache
def _native_for(device: str) -> Operations | None:
    return operations() if load().serves(torch.device(device)) else None
