"""What is known of one activation layer of a decoder block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ft2.layers.roles import end_of_chain
from ft2.layers.trace import Activated, Product

__all__ = ["Activation", "activations_of"]


@dataclass(frozen=True)
class Activation:
    """An elementwise activation between two linear layers of a decoder block.

    Attributes
    ----------
    name:
        The path of its module, or of the module in whose forward it is called as a function.
    function:
        What it computes (``silu``, ``gelu``).
    is_module:
        Whether the activation is what the module returns: only then its output can be tapped.
    by_token:
        Whether its module is given one vector for each token, in order. Experts share one that is
        given what was routed to them.
    into:
        Paths of the linear layers that read what it puts out, perhaps multiplied with other data;
        of several in a row, as an adapter's pair is, the last one.
    """

    name: str
    function: str
    is_module: bool
    by_token: bool
    into: tuple[str, ...]


def activations_of(
    found: Iterable[Activated], products: Mapping[int, Product], attention_outputs: set[str]
) -> list[Activation]:
    """Return the activation layers among what was seen, in forward order.

    A linear layer reads each element of what an activation layer puts out, with no addition between
    them, as the MLP's last projection does. A gate on what attention computed only weighs it, a
    router's scores weigh experts, and a softmax is attention's or a router's: none is an activation
    layer.

    Parameters
    ----------
    found:
        The activations of the model.
    products:
        The linear products of the decoder blocks, by number.
    attention_outputs:
        Names of the parameters of the projections that read what attention computed.
    """
    layers: dict[str, Activation] = {}
    by_name = {product.weight: product for product in products.values()}
    for each in found:
        into = [
            end_of_chain(name, by_name)
            for name in sorted((each.reaches - attention_outputs) & by_name.keys())
            if by_name[name].in_features in each.widths
        ]
        if each.source not in products or not into:
            continue
        paths = tuple(name.removesuffix(".weight") for name in into)
        known = layers.get(each.module)
        layers[each.module] = Activation(
            name=each.module,
            function=known.function if known else each.function,
            is_module=each.is_output and (known is None or known.is_module),
            by_token=each.by_token and (known is None or known.by_token),
            into=paths if known is None else tuple(dict.fromkeys((*known.into, *paths))),
        )
    return list(layers.values())
