"""Find the cache among a forward's inputs and outputs, by any name that transformers has for it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["cache_argument", "cache_in", "cache_made_by", "cache_name", "is_cache"]

# transformers 5.24 and later; transformers before, and remote code; recurrent models before 5.24.
_NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(names: Iterable[str]) -> str | None:
    """Return which of these names is a cache's, if any is."""
    known = frozenset(names)
    return next((name for name in _NAMES if name in known), None)


def cache_argument(model: nn.Module) -> str:
    """Return the name under which the model's forward takes a cache.

    Raises
    ------
    NotImplementedError
        If it takes none.
    """
    name = cache_name(inspect.signature(type(model).forward).parameters)
    if name is None:
        raise NotImplementedError(f"the forward of {type(model).__name__} takes no cache")
    return name


def cache_in(inputs: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a forward or of ``generate``, or None."""
    for name in _NAMES:
        cache = inputs.get(name)
        if cache is not None:
            return cache
    return None


def cache_made_by(output: Any) -> Any:
    """Return the cache that a forward or ``generate`` returned, or None.

    Parameters
    ----------
    output:
        A tuple, or what has fields.
    """
    if isinstance(output, tuple):
        return next((value for value in output if hasattr(value, "get_seq_length")), None)
    # In a generator: asking for an old name warns where there is a new one.
    values = (getattr(output, name, None) for name in _NAMES)
    return next(filter(is_cache, values), None)


def is_cache(value: Any) -> bool:
    """Whether a value is an object that forwards share, and that is told from another."""
    if value is None or isinstance(value, (Tensor, tuple, list, dict)):
        return False
    try:
        hash(weakref.ref(value))
    except TypeError:
        return False
    return True
