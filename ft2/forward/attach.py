"""Tap projections, wherever in the model their outputs arise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from ft2.forward.tap import Order, Tap, tap, tap_product
from ft2.forward.trail import Vectors
from ft2.layers import Projection

__all__ = ["attach"]


def attach(
    model: nn.Module,
    found: Iterable[Projection],
    order: Order,
    whole: Callable[[Projection], Callable[[Tensor], Tensor]],
    vectors: Callable[[list[Projection]], Callable[[Vectors], Tensor]],
) -> list[Tap]:
    """Tap each of the projections.

    Parameters
    ----------
    model:
        The model that they were found in.
    found:
        The projections.
    order:
        As in :func:`ft2.forward.tap`.
    whole:
        Makes the transform of a projection that is the output of its module.
    vectors:
        Makes the transform of a parameter's products, given those of the projections that are
        products with that parameter (one for each expert).
    """
    taps = []
    products: dict[tuple[str, str], list[Projection]] = {}
    for projection in found:
        if projection.weight is None:
            module = model.get_submodule(projection.module)
            taps.append(tap(module, order, whole(projection)))
        else:
            products.setdefault((projection.module, projection.weight), []).append(projection)
    for (path, weight), group in products.items():
        path_of_owner, _, name = weight.rpartition(".")
        owner = model.get_submodule(path_of_owner)
        width, size = group[0].out_features, group[0].in_features * group[0].out_features
        matrices = 0 if group[0].expert is None else model.get_parameter(weight).numel() // size
        module = model.get_submodule(path)
        taps.append(tap_product(module, owner, name, width, matrices, order, vectors(group)))
    return taps
