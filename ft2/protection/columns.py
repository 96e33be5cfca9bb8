"""Take chosen columns out of a layer's output, and put them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Columns"]


class Columns:
    """Columns of a layer that share bounds, wherever a model lays them out.

    Parameters
    ----------
    ranges:
        Their ``(start, stop)`` ranges over the last dimension of the layer's output; None for all.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]] | None) -> None:
        self._ranges = ranges
        self._indices: dict[torch.device, Tensor] = {}

    def take(self, values: Tensor) -> Tensor:
        """Return these columns of `values`, (..., width); a view of them if they are one range."""
        if self._ranges is None:
            return values
        if len(self._ranges) == 1:
            return values[..., slice(*self._ranges[0])]
        return values.index_select(-1, self._index(self._ranges, values.device))

    def put(self, values: Tensor, part: Tensor, changed: Tensor) -> Tensor:
        """Return `values` with `changed` in place of `part`, which was taken from it."""
        if self._ranges is None:
            return changed
        if len(self._ranges) > 1:
            return values.index_copy(-1, self._index(self._ranges, values.device), changed)
        if changed is part:
            return values
        copied = values.clone()
        copied[..., slice(*self._ranges[0])] = changed
        return copied

    def _index(self, ranges: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        if device not in self._indices:
            columns = [column for start, stop in ranges for column in range(start, stop)]
            with torch.inference_mode(False):
                self._indices[device] = torch.tensor(columns, device=device)
        return self._indices[device]
