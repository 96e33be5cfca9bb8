"""What a forward is given: its tokens, its mask, and how much its cache holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeGuard

from torch import Tensor, nn

__all__ = [
    "first_parameter",
    "length_of",
    "named",
    "tells_length",
    "tells_padding",
    "tokens_in",
]


@functools.lru_cache(maxsize=64)
def _parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def first_parameter(module: nn.Module) -> str:
    """Return the name of what comes first in a module's forward."""
    return next(iter(_parameter_names(type(module).forward)), "")


def tokens_in(inputs: dict[str, Any], first: str) -> Tensor:
    """Return the token ids or embeddings among inputs: by their usual names, or what comes first.

    Raises
    ------
    RuntimeError
        If there are none.
    """
    for name in ("input_ids", "inputs_embeds"):
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.dim() >= 2:
            return value
    value = inputs.get(first)
    if isinstance(value, Tensor) and value.dim() == (3 if value.is_floating_point() else 2):
        return value
    raise RuntimeError(
        "ft2 could not find the batch and the tokens of a forward: pass input_ids or "
        "inputs_embeds, with shape (batch, tokens, ...), or either as the first argument"
    )


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all that a module's forward is given, by the names of its parameters."""
    if not args:
        return kwargs
    return dict(zip(_parameter_names(type(module).forward), args, strict=False)) | kwargs


def tells_padding(mask: Any, rows: int) -> TypeGuard[Tensor]:
    """Whether a mask says of each row which tokens are padding."""
    return isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[0] == rows


def length_of(cache: Any) -> int | Tensor | None:
    """Return how many tokens a cache holds; None if it does not say."""
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        return None
    try:
        cached: int | Tensor = length()
    except ValueError:
        # A recurrent state does not say how many tokens went into it.
        return None
    return cached


def tells_length(cache: Any) -> bool:
    """Whether a cache that tokens went into says so; some always say none."""
    cached = length_of(cache)
    return isinstance(cached, Tensor) or bool(cached)
