"""What a projection is for in its block, from what became of its columns.

The protections that FT2 is compared with name layers by their roles (HPDC '25, Table 1):
``v_proj``, ``out_proj``, and the last projection of the MLP (``fc2``, ``down_proj``). They are
found by what they do, whatever a model calls them:

- *values* are the columns that attention weighs by a softmax and sums;
- an *attention output* is the projection that reads that sum (of several in a row, as a low-rank
  pair is, the last one);
- the *last projection of the MLP* is what else is added to the residual stream. A recurrent mixer's
  output projection is one: it stands in the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ft2.layers.rules import ADDITION, MATRIX_PRODUCT, WEIGHTED_SUM
from ft2.layers.trace import LINEAR, OUTPUT, Fate, Product

__all__ = ["attention_outputs", "end_of_chain", "values_of", "writes_residual"]


def values_of(product: Product) -> Tensor:
    """Return bool (width,): the columns that attention weighs and sums."""
    values = torch.zeros(product.width, dtype=torch.bool)
    for fate, columns in product.fates.items():
        if _is_attended(fate):
            values |= columns
    return values


def attention_outputs(products: Iterable[Product]) -> set[str]:
    """Return the names of the parameters of all attention outputs."""
    by_name = {product.weight: product for product in products}
    readers = {
        fate.at for product in by_name.values() for fate in product.fates if _is_attended(fate)
    }
    return {end_of_chain(name, by_name) for name in readers}


def end_of_chain(name: str, products: Mapping[str, Product]) -> str:
    """Return the last of the linear layers that follow one another with nothing between them.

    Parameters
    ----------
    name:
        The first layer's parameter.
    products:
        All products, by the names of their parameters.
    """
    seen: set[str] = set()
    while (after := _only_reader(products.get(name))) is not None and name not in seen:
        seen.add(name)
        name = after
    return name


def writes_residual(product: Product) -> bool:
    """Whether what the product computes is added to the residual stream."""
    return any(map(_is_added, product.fates))


def _is_attended(fate: Fate) -> bool:
    if fate.end != LINEAR or WEIGHTED_SUM not in fate.via:
        return False
    return ADDITION not in fate.via[fate.via.index(WEIGHTED_SUM) :]


def _is_added(fate: Fate) -> bool:
    if fate.end not in (LINEAR, OUTPUT) or ADDITION not in fate.via or _is_attended(fate):
        return False
    # A recurrence adds to its states.
    if MATRIX_PRODUCT in fate.via:
        return False
    # What an adapter adds to before the activated gate comes is not the residual stream.
    after = fate.via[fate.via.index(ADDITION) :]
    return not any(word.startswith("a product with") for word in after)


def _only_reader(product: Product | None) -> str | None:
    """Return the one linear layer that reads the product, with nothing between them."""
    if product is None or len(product.fates) != 1:
        return None
    (fate,) = product.fates
    return fate.at if fate.end == LINEAR and not fate.via else None
