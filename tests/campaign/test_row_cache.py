"""What rows attend to, and what they must not see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ft2.campaign.row_cache import Prefixes, RowCache

LAYERS, HEADS, SIZE = 2, 2, 4


def prefixes(rows: int, columns: int, fill: float | None = None) -> Prefixes:
    generator = torch.Generator().manual_seed(columns)
    shape = (rows, HEADS, columns, SIZE)
    keys, values = (
        [torch.randn(shape, generator=generator) for _ in range(LAYERS)] for _ in range(2)
    )
    if fill is not None:
        for each in (*keys, *values):
            each.fill_(fill)
    return Prefixes(keys, values, rows_each=1)


def attended(cache: RowCache, rows: Tensor, columns: int, width: int) -> Tensor:
    """Let rows join behind `columns` columns that end at `width`; return what they attend to."""
    start = torch.full_like(rows, width - columns)
    cache.join(rows, start, torch.full_like(rows, width))
    cache.begin(torch.zeros(cache.rows, dtype=torch.int64), 1)
    one = torch.ones(cache.rows, HEADS, 1, SIZE)
    cache.take(0, one, one)
    output, _ = cache.attend(0, one, 0.5)
    return output[rows]


@pytest.mark.parametrize("left", [torch.nan, torch.inf])
def test_a_shorter_prompt_sees_nothing_of_the_one_before_it(left: float) -> None:
    rows, width = torch.tensor([0, 1]), 6
    found = []
    for before in (None, prefixes(2, width, left)):
        group = prefixes(2, 1).blank(2, width + 3)
        cache = RowCache([group], 3)
        if before is not None:
            group.put(rows, before, rows, 0)
            attended(cache, rows, width, width)
        group.put(rows, prefixes(2, 2), rows, width - 2)
        found.append(attended(cache, rows, 2, width))
    assert bool(found[0].isfinite().all())
    assert torch.equal(*found)
