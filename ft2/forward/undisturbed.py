"""Whether anything but transformers runs between two tokens of a ``generate``.

What runs there may change the model: then nothing that was known after one token holds before the
next.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import GenerationMixin, PrefixConstrainedLogitsProcessor
from transformers.generation import logits_process, stopping_criteria, streamers

__all__ = ["is_undisturbed"]

# The loop, and what it calls for each token.
_METHODS = (
    "_sample",
    "_has_unfinished_sequences",
    "_update_model_kwargs_for_generation",
    "prepare_inputs_for_generation",
)


def is_undisturbed(
    model: nn.Module, kind: type, sample: Callable[..., Any], args: Any, kwargs: Any
) -> bool:
    """Whether the loop over tokens, and all it calls but the model, is transformers' own.

    Parameters
    ----------
    model:
        The model that generates.
    kind:
        The class that it is of, when nothing is attached.
    sample:
        The loop, ``GenerationMixin._sample`` or what stands in its place.
    args, kwargs:
        What the loop was called with, behind the model.
    """
    if any(getattr(kind, name) is not _own(name) or name in vars(model) for name in _METHODS):
        return False
    try:
        given = inspect.signature(sample).bind(model, *args, **kwargs).arguments
        processors, criteria = given["logits_processor"], given["stopping_criteria"]
    except (KeyError, TypeError):
        return False
    # It calls a function that the user gave.
    if any(type(each) is PrefixConstrainedLogitsProcessor for each in processors):
        return False
    streamer = given.get("streamer")
    return (
        _are_from(logits_process, [processors, *processors])
        and _are_from(stopping_criteria, criteria)
        and (streamer is None or _are_from(streamers, [streamer]))
    )


def _own(name: str) -> Any:
    found = getattr(GenerationMixin, name, None)
    return found if getattr(found, "__module__", None) == GenerationMixin.__module__ else None


def _are_from(module: Any, things: Iterable[Any]) -> bool:
    return all(type(each).__module__ == module.__name__ for each in things)
