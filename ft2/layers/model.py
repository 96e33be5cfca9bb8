"""Finding the model in what a caller hands over."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["unwrap"]


def unwrap(model: Any) -> nn.Module:
    """Return the module that holds the layers of `model`.

    ``torch.compile`` wraps a module in another one; the layers, and whatever reaches them, belong
    to the module inside.

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
    return inner if isinstance(inner, nn.Module) else model
