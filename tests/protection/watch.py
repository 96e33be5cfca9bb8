"""Watch one layer of a model, and put chosen values into what it computes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ft2 import Protection
from ft2.forward import Order, tap

__all__ = ["Watch", "generate", "learned", "prompts", "watching"]

Place = tuple[int, int, int]


@dataclass
class Watch:
    """A layer's outputs, one for each run, each (rows, tokens, columns).

    `computed` is what the layer computed; `passed_on` what came of it after all taps attached
    before the watch began.
    """

    rows: int
    computed: list[Tensor] = field(default_factory=list)
    passed_on: list[Tensor] = field(default_factory=list)

    def range(
        self, row: int, runs: slice = slice(1), tokens: slice = slice(None)
    ) -> tuple[float, float]:
        """The least and largest number that the layer computed for a row."""
        seen = torch.cat([output[row, tokens].flatten() for output in self.computed[runs]])
        return float(seen.min()), float(seen.max())


@contextmanager
def watching(
    model: nn.Module,
    layer: str,
    rows: int = 1,
    strikes: Mapping[int, Mapping[Place, float]] | None = None,
) -> Generator[Watch, None, None]:
    """Watch `layer`; in run r, ``strikes[r]`` maps (row, token, column) to a value to put there."""
    watch = Watch(rows)
    module = model.get_submodule(layer)

    def observe(output: Tensor) -> Tensor:
        watch.computed.append(output.detach().clone().view(rows, -1, output.shape[-1]))
        return output

    def strike(output: Tensor) -> Tensor:
        struck = output.clone()
        by_row = struck.view(rows, -1, output.shape[-1])
        for place, value in (strikes or {}).get(len(watch.passed_on), {}).items():
            by_row[place] = value
        return struck

    def pass_on(output: Tensor) -> Tensor:
        watch.passed_on.append(output.detach().clone().view(rows, -1, output.shape[-1]))
        return output

    taps = [
        tap(module, Order.OBSERVE, observe),
        tap(module, Order.INJECT, strike),
        tap(module, Order.PROTECT, pass_on),
    ]
    try:
        yield watch
    finally:
        for each in taps:
            each.remove()


def prompts(rows: int = 1, tokens: int = 9, seed: int = 0) -> Tensor:
    """Random prompts, (rows, tokens), of no special token."""
    return torch.randint(3, 61, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def generate(model: Any, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    """Generate greedily, 20 tokens unless told otherwise, whatever ends them."""
    settings = {"max_new_tokens": 20, "do_sample": False, **settings}
    mask = torch.ones_like(ids) if mask is None else mask
    generated: Tensor = model.generate(ids, attention_mask=mask, **settings)
    return generated


def learned(protection: Protection, layer: str, column: int = 0) -> tuple[Tensor, Tensor]:
    """What the running or last forward's requests have learned: minimum, maximum."""
    bounds = protection._policy._current.learned((layer, column))  # type: ignore[attr-defined]
    assert bounds is not None
    return bounds[0].clone(), bounds[1].clone()
