"""The smallest model of token ids: an embedding, blocks and a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ft2.layers import Projection, projections

__all__ = ["Model", "of_block"]

_WIDTH = 8


class _Block(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.first = nn.Linear(_WIDTH, _WIDTH)
        self.other = nn.Linear(_WIDTH, _WIDTH)
        self.fused = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.last = nn.Linear(_WIDTH, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH)
        self.along = nn.Conv1d(_WIDTH, _WIDTH, 3, padding=2, groups=_WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.compute(self, hidden)


class Model(nn.Module):
    """A block computes what it is told, with ``first``, ``other``, ``fused`` and ``last``."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, _WIDTH)
        self.blocks = nn.ModuleList([_Block(compute)])
        self.head = nn.Linear(_WIDTH, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return torch.as_tensor(self.head(hidden))


def of_block(compute: Callable[[Any, Tensor], Tensor]) -> dict[str, Projection]:
    """The projections of a block that computes `compute`, by kind."""
    return {each.kind: each for each in projections(Model(compute))}
