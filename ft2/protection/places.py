"""Where a policy with profiled bounds acts: columns of projections, and outputs of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ft2.forward import Order, Tap, Vectors, attach, tap
from ft2.layers import Activation, Projection

__all__ = ["Place", "tap_places"]


@dataclass(frozen=True)
class Place:
    """Values that share bounds.

    Attributes
    ----------
    layer:
        What puts them out. Each expert is a layer of its own.
    ranges:
        ``(start, stop)`` ranges of a projection's columns; None for all of them.
    """

    layer: Projection | Activation
    ranges: tuple[tuple[int, int], ...] | None = None

    @property
    def name(self) -> str:
        """The layer's name, by which its bounds are kept."""
        return self.layer.name

    @classmethod
    def of_columns(cls, projection: Projection, ranges: Iterable[tuple[int, int]]) -> Place:
        """Return the place of some columns of a projection."""
        chosen = tuple(ranges)
        return cls(projection, None if chosen == ((0, projection.out_features),) else chosen)


def tap_places(
    model: nn.Module,
    places: Sequence[Place],
    order: Order,
    whole: Callable[[Place], Callable[[Tensor], Tensor]],
    vectors: Callable[[list[Place]], Callable[[Vectors], Tensor]],
) -> list[Tap]:
    """Tap each of the places.

    Parameters
    ----------
    model:
        The model that they were found in.
    places:
        The places.
    order:
        As in :func:`ft2.forward.tap`.
    whole:
        Makes the transform of what one module puts out.
    vectors:
        Makes the transform of a parameter's products, given the places that these are (one for each
        expert).
    """
    by_name = {place.name: place for place in places}

    def of_module(projection: Projection) -> Callable[[Tensor], Tensor]:
        return whole(by_name[projection.name])

    def of_parameter(group: list[Projection]) -> Callable[[Vectors], Tensor]:
        return vectors([by_name[projection.name] for projection in group])

    layers = [place.layer for place in places]
    found = [layer for layer in layers if isinstance(layer, Projection)]
    taps = attach(model, found, order, of_module, of_parameter)
    for layer in layers:
        if isinstance(layer, Activation):
            taps.append(tap(model.get_submodule(layer.name), order, whole(by_name[layer.name])))
    return taps
