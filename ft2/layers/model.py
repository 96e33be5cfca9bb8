"""Finding the model in what a caller hands over."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GenerationMixin

__all__ = ["unwrap"]


def unwrap(model: Any) -> nn.Module:
    """Return the module that holds the layers of `model`.

    ``torch.compile``, adapters (PEFT's), ``DataParallel`` and classes of the user's own wrap a
    module in another one; the layers, and whatever reaches them, belong to the module inside.

    Raises
    ------
    TypeError
        If `model` is not a :class:`torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise TypeError(
            f"ft2 needs the model itself, a torch.nn.Module, and was given "
            f"{type(model).__module__}.{type(model).__qualname__}{hint}"
        )
    inner = getattr(model, "_orig_mod", None)
    get_base_model: Any = getattr(model, "get_base_model", None)
    if inner is None and callable(get_base_model):
        inner = get_base_model()
    if inner is None:
        inner = _only_generating(model)
    return unwrap(inner) if isinstance(inner, nn.Module) and inner is not model else model


# Where models keep their layers.
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _holds_model(module: nn.Module) -> bool:
    return any(isinstance(each, GenerationMixin) for each in module.modules())


def _only_generating(model: nn.Module) -> nn.Module | None:
    """Return the one model of transformers that generates text in `model`, unless there are more.

    Whatever it is wrapped in asks it: for a forward, or to generate. What has layers of its own in
    lists is a model that has another one beside them.
    """
    outermost: set[nn.Module] = set()
    seen, left = {model}, [model]
    while left:
        module = left.pop()
        if isinstance(module, GenerationMixin):
            outermost.add(module)
            continue
        if isinstance(module, _LISTS) and not _holds_model(module):
            return None
        children = set(module.children()) - seen
        seen |= children
        left += children
    return outermost.pop() if len(outermost) == 1 else None
