"""Which layers' inputs or outputs does a model change in place, once they are computed?"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ft2.layers.answers import Answering
from ft2.layers.replica import replicate

__all__ = ["changed_in_place"]

_KNOWN: WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], frozenset[str]]] = WeakKeyDictionary()


def changed_in_place(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Return those of some layers that the model writes to the inputs or outputs of.

    Falcon adds the output of attention to that of the MLP, say. The model runs once on the meta
    device, without its numbers; the answer is kept. Where it cannot run, or numbers may decide what
    it does to the layers, all of them are returned.

    Parameters
    ----------
    model:
        A causal language model.
    names:
        Names of modules, each given a tensor first and returning one.
    """
    names = tuple(names)
    known = _KNOWN.get(model)
    if known is None or known[0] != names:
        try:
            found = _changed(replicate(model), names)
        except Exception:
            found = frozenset(names)
        known = _KNOWN[model] = (names, found)
    return known[1]


def _changed(replica: nn.Module, names: tuple[str, ...]) -> frozenset[str]:
    kept: list[tuple[str, Tensor, int]] = []
    answering = Answering()
    asked = 0

    def keep(name: str, given: Tensor, output: Tensor) -> None:
        nonlocal asked
        if not kept:
            asked = answering.asked
        kept.extend([(name, given, given._version), (name, output, output._version)])

    for name in names:
        replica.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: keep(name, given[0], output)
        )
    ids = torch.ones((2, 3), dtype=torch.int64, device="meta")
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        answering,
    ):
        if "input_ids" in inspect.signature(replica.forward).parameters:
            replica(input_ids=ids)
        else:
            replica(ids)
    # Before any of them has run, it is masks and tokens that are asked about.
    if answering.asked > asked:
        return frozenset(names)
    seen = {name for name, _, _ in kept}
    changed = {name for name, tensor, version in kept if tensor._version != version}
    # A layer that did not run tells nothing.
    return frozenset(changed | (set(names) - seen))
