"""Take some rows of a batch from one computation of a forward, and the others from another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["adopted", "adopted_tensor", "copied", "records_gradients"]


def copied(output: Any) -> Any:
    """Return what a forward returned, its tensors copied: a CUDA graph overwrites them."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    if isinstance(output, dict):
        # The classes of transformers' outputs take fields, not a dictionary.
        return {name: copied(each) for name, each in output.items()}
    if isinstance(output, (tuple, list)):
        return [copied(each) for each in output]
    return output


def records_gradients(output: Any) -> bool:
    """Whether any tensor that a forward returned has gradients to pass on."""
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, dict):
        return any(map(records_gradients, output.values()))
    return isinstance(output, (tuple, list)) and any(map(records_gradients, output))


def adopted(output: Any, before: Any, chosen: Tensor) -> Any:
    """Return `output`, but rows that are not chosen as they were before.

    Parameters
    ----------
    output:
        What a forward returned: tensors, in tuples, lists and mappings. What has no rows (a loss)
        and what is no tensor is taken as it is.
    before:
        What :func:`copied` made of what it returned before.
    chosen:
        bool (rows,).
    """
    if isinstance(output, Tensor):
        return adopted_tensor(output, before, chosen) if isinstance(before, Tensor) else output
    if isinstance(output, dict):
        for name, each in list(output.items()):
            merged = adopted(each, before[name], chosen)
            if merged is not each:
                output[name] = merged
        return output
    if isinstance(output, (tuple, list)):
        parts = [adopted(each, old, chosen) for each, old in zip(output, before, strict=True)]
        if hasattr(output, "_fields"):
            return type(output)(*parts)
        return type(output)(parts)
    return output


def adopted_tensor(values: Tensor, before: Tensor, chosen: Tensor) -> Tensor:
    """Return chosen rows of `values`, (rows or rows · tokens, ...), and the others of `before`."""
    rows = len(chosen)
    if values.shape != before.shape or not values.dim() or not values.shape[0]:
        return values
    if values.shape[0] % rows:
        return values
    mask = chosen.to(values.device).repeat_interleave(values.shape[0] // rows)
    return torch.where(mask.view(-1, *[1] * (values.dim() - 1)), values, before)
