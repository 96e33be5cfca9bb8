"""Find the linear projections of a model's decoder blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ft2.layers.activation import Activation, activations_of
from ft2.layers.criticality import columns_of, ranges_of, reason_of
from ft2.layers.model import unwrap
from ft2.layers.projection import Projection, role_of
from ft2.layers.replica import replicate
from ft2.layers.roles import attention_outputs, values_of, writes_residual
from ft2.layers.trace import Product, Traced, trace

__all__ = ["UnsupportedModelError", "activations", "projections"]

_ROWS, _TOKENS = 2, 3
# Some layers look at windows of tokens only, and compute nothing for a short text.
_MANY_TOKENS = 300


class UnsupportedModelError(ValueError):
    """The model could not be looked into, or no projection was found in it."""


def projections(model: nn.Module) -> list[Projection]:
    """List the linear projections of the model's decoder blocks, in forward order.

    The model is run once on the meta device, without its numbers, and what becomes of each linear
    product is followed to the next one (FT2, section 4.1.2; :mod:`ft2.layers.rules` says how the
    paper's rule is read). The answer is kept until the model's modules change.

    Parameters
    ----------
    model:
        A causal language model, or what ``torch.compile`` made of one. Its weights are not read
        and can be on the meta device.

    Returns
    -------
    list of Projection
        Every linear projection of the decoder blocks that a forward over text runs. Embeddings and
        ``lm_head`` are not among them.

    Raises
    ------
    TypeError
        If `model` is not a module.
    UnsupportedModelError
        If the model cannot be run on token ids alone, or no projection was found.
    """
    return list(_look(unwrap(model)).projections)


def activations(model: nn.Module) -> list[Activation]:
    """List the activation layers of the model's decoder blocks, in forward order.

    Found as :func:`projections` finds linear layers, and raises as it does; there may be none.
    """
    return list(_look(unwrap(model)).activations)


@dataclass(frozen=True)
class _Known:
    structure: int
    projections: tuple[Projection, ...]
    activations: tuple[Activation, ...]


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _look(model: nn.Module) -> _Known:
    structure = _structure(model)
    known = _KNOWN.get(model)
    if known is None or known.structure != structure:
        # What the caller is in (inference mode, another device) would change what is seen.
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            known = _KNOWN[model] = _find(model, structure)
    return known


def _structure(model: nn.Module) -> int:
    """A number that changes when modules are exchanged, wrapped, resized or given a forward."""
    parts = [
        (name, type(module).__module__, type(module).__qualname__, id(vars(module).get("forward")))
        for name, module in model.named_modules()
    ]
    shapes = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    return hash((tuple(parts), tuple(shapes)))


def _find(model: nn.Module, structure: int) -> _Known:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"this {type(model).__name__} has an encoder beside its decoder: ft2 knows models that "
            "have a decoder alone, such as those of AutoModelForCausalLM"
        )
    traced = _traced(model)
    blocks = _Blocks(model)
    inside = {each.number: each for each in traced.products if blocks.hold(each.weight)}
    outputs = attention_outputs(inside.values())
    found = _projections(model, traced.products, list(inside.values()), outputs)
    activated = activations_of(traced.activations, inside, outputs)
    return _Known(structure, tuple(found), tuple(activated))


def _projections(
    model: nn.Module, products: list[Product], inside: list[Product], outputs: set[str]
) -> list[Projection]:
    found = [each for product in inside for each in _projections_of(product, outputs)]
    found += _idle_siblings(model, found)
    for projection in found:
        if not projection.module:
            raise UnsupportedModelError(
                f"ft2 cannot tell which token the vectors of {projection.name} belong to: no "
                f"module of this {type(model).__name__} around it is given one vector for each "
                "token, row after row of the batch"
            )
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        seen = sorted({product.weight for product in products})
        raise UnsupportedModelError(
            f"no linear projection was found in decoder blocks of this {type(model).__name__}: it "
            f"is made of {', '.join(kinds)}; linear layers that ran: "
            f"{', '.join(seen) if seen else 'none'}; blocks are the entries of a ModuleList, a "
            "ModuleDict or a Sequential"
        )
    return found


def _traced(model: nn.Module) -> Traced:
    try:
        replica = replicate(model)
        traced = trace(replica, _ROWS, _TOKENS)
        if all(product.fates for product in traced.products):
            return traced
        return trace(replica, _ROWS, _MANY_TOKENS)
    except Exception as error:
        reason = error
    if all(not parameter.is_meta for parameter in model.parameters()):
        # What depends on numbers (patches that follow a text's entropy) needs the weights.
        with suppress(Exception):
            traced = trace(model, _ROWS, _TOKENS)
            if traced.products:
                return traced
    raise UnsupportedModelError(
        f"ft2 could not run this {type(model).__name__} on token ids to see its layers: "
        f"{type(reason).__name__}: {reason}"
    ) from reason


class _Blocks:
    """The decoder blocks of a model: entries of its outermost lists of modules."""

    def __init__(self, model: nn.Module) -> None:
        self._lists = {
            name
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        }

    def hold(self, weight: str) -> bool:
        """Whether the parameter lies inside a block, and is not an entry of a list itself."""
        owner = weight.split(".")[:-1]
        return any(".".join(owner[:length]) in self._lists for length in range(len(owner) - 1))


def _projections_of(product: Product, attention_outputs: set[str]) -> Iterator[Projection]:
    columns = columns_of(product)
    ends: Literal["attention", "mlp"] | None = None
    if product.weight in attention_outputs:
        ends = "attention"
    elif writes_residual(product):
        ends = "mlp"
    path = product.weight.removesuffix(".weight")
    name = product.module if product.is_output else path
    whole = Projection(
        name=name,
        kind=role_of(name),
        critical=any(critical for _, _, critical in columns),
        columns=columns,
        reason=reason_of(product),
        in_features=product.in_features,
        out_features=product.width,
        module=product.module if product.is_output else product.scope,
        weight=None if product.is_output else product.weight,
        values=tuple((start, stop) for start, stop, held in ranges_of(values_of(product)) if held),
        ends=ends,
    )
    if not product.experts:
        yield whole
    for expert in range(product.experts):
        yield replace(whole, name=f"{name}.{expert}", expert=expert)


def _idle_siblings(model: nn.Module, found: list[Projection]) -> list[Projection]:
    """Linear modules beside ones that ran, which no token of the traced text was routed to."""
    known = {projection.name for projection in found}
    alike = {_pattern(each.name): each for each in found if each.weight is None}
    idle = []
    for name, module in model.named_modules():
        sibling = alike.get(_pattern(name))
        if sibling is None or name in known:
            continue
        if type(module) is type(model.get_submodule(sibling.name)):
            idle.append(replace(sibling, name=name, module=name))
    return idle


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
