"""Record the vectors of products with raw parameters."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import Tensor, nn

from ft2.forward import Clock, Listener, Order, Vectors, attach
from ft2.layers import Projection, projections

__all__ = ["Recorded", "raw_projections", "recording"]

# Each run of a product: (token, expert) -> values, and how many tokens there were.
Recorded = dict[str, list[Vectors]]


def raw_projections(model: nn.Module) -> list[Projection]:
    """The projections that are products with a parameter inside a module."""
    return [each for each in projections(model) if each.weight is not None]


@contextmanager
def recording(model: nn.Module) -> Generator[Recorded, None, None]:
    """Collect the vectors of every product with a raw parameter, by the parameter's name."""
    recorded: Recorded = {}

    def whole(projection: Projection) -> Callable[[Tensor], Tensor]:
        raise AssertionError(projection)

    def vectors(group: list[Projection]) -> Callable[[Vectors], Tensor]:
        def record(vectors: Vectors) -> Tensor:
            copied = Vectors(
                vectors.values.detach().clone(), vectors.tokens, vectors.experts, vectors.count
            )
            recorded.setdefault(str(group[0].weight), []).append(copied)
            return vectors.values

        return record

    listener = Listener()
    clock = Clock.listen(model, listener)
    taps = attach(model, raw_projections(model), Order.OBSERVE, whole, vectors)
    try:
        yield recorded
    finally:
        for each in taps:
            each.remove()
        clock.dismiss(model, listener)
