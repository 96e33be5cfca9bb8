"""Say which columns of a product are critical, and why, from what became of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from ft2.layers.projection import role_of
from ft2.layers.rules import CHOICE, MATRIX_PRODUCT, SOFTMAX
from ft2.layers.trace import LINEAR, OUTPUT, Fate, Product

__all__ = ["columns_of", "ranges_of", "reason_of"]

_MOST_NAMED = 3


def columns_of(product: Product) -> tuple[tuple[int, int, bool], ...]:
    """Return ``(start, stop, critical)`` ranges over the product's columns, without gap.

    A column is critical if one of its paths reaches a linear layer with no activation and no
    scaling on it; so is one that was lost from sight, to be safe.
    """
    return ranges_of(product.exposed | ~_followed(product))


def ranges_of(columns: Tensor) -> tuple[tuple[int, int, bool], ...]:
    """Return the runs of equal values in bool (width,) as ``(start, stop, value)``."""
    changes = torch.nonzero(columns[1:] != columns[:-1]).flatten() + 1
    edges = [0, *changes.tolist(), len(columns)]
    return tuple((start, stop, bool(columns[start])) for start, stop in pairwise(edges))


def reason_of(product: Product) -> str:
    """Return one sentence for each way in which columns of the product go on."""
    exposed = product.exposed
    reasons: dict[str, None] = {}
    clear = [fate for fate in product.fates if fate.end in (LINEAR, OUTPUT)]
    if clear:
        reasons[_clear(clear)] = None
    ended = {
        fate: columns & ~exposed
        for fate, columns in product.fates.items()
        if fate.end not in (LINEAR, OUTPUT)
    }
    going_on = [columns for fate, columns in ended.items() if fate.end != CHOICE]
    for fate, columns in ended.items():
        # What also goes elsewhere does not only choose.
        if fate.end == CHOICE:
            for others in going_on:
                columns = columns & ~others
        if bool(columns.any()):
            reasons[_ended(fate)] = None
    if not bool(_followed(product).all()):
        reasons["what becomes of it could not be followed, so it is protected"] = None
    return "; ".join(reasons)


def _followed(product: Product) -> Tensor:
    followed = torch.zeros(product.width, dtype=torch.bool)
    for columns in product.fates.values():
        followed |= columns
    return followed


def _clear(fates: list[Fate]) -> str:
    names = list(dict.fromkeys(role_of(fate.at) for fate in fates if fate.end == LINEAR))
    targets = _listed(names) if names else "the model's output"
    via = list(dict.fromkeys(word for fate in fates for word in fate.via))
    through = f" through {_listed(via)}" if via else ""
    return f"reaches {targets}{through}, with no activation and no scaling before"


def _ended(fate: Fate) -> str:
    if fate.end == SOFTMAX:
        if MATRIX_PRODUCT in fate.via:
            return "goes into attention scores, which are scaled and go through a softmax"
        return "goes through a softmax"
    if fate.end == CHOICE:
        return "only decides which tokens or experts are chosen"
    return f"goes through {fate.end}"


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    if len(words) > _MOST_NAMED:
        words = [*words[: _MOST_NAMED - 1], "others"]
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
