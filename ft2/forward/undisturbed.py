"""Whether anything but transformers runs between two tokens of a ``generate``.

What runs there may change the model: then nothing that was known after one token holds before the
next.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import transformers
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers import GenerationMixin, PrefixConstrainedLogitsProcessor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ft2.forward.cache_names import cache_in
from ft2.forward.disguise import own_class, undisguised

__all__ = ["is_undisturbed"]

# The loop, and what it calls for each token; as they are before anyone exchanges them.
_METHODS = {
    name: getattr(GenerationMixin, name, None)
    for name in (
        "_sample",
        "_has_unfinished_sequences",
        "_update_model_kwargs_for_generation",
        "create_masks_for_generate",
        "prepare_inputs_for_generation",
    )
}
_HERE, _THEIRS = (
    os.path.dirname(each) + os.sep for each in (os.path.dirname(__file__), transformers.__file__)
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
    if _get_current_function_mode_stack() or _get_current_dispatch_mode_stack():
        return False
    if not _has_own_methods(model, kind):
        return False
    try:
        given = inspect.signature(sample).bind(model, *args, **kwargs).arguments
        processors, criteria = given["logits_processor"], given["stopping_criteria"]
    except (KeyError, TypeError):
        return False
    called: list[Any] = [type(each).__call__ for each in (processors, *processors, *criteria)]
    # It calls a function that the user gave.
    if any(type(each) is PrefixConstrainedLogitsProcessor for each in processors):
        return False
    # One with a text to show runs what shows it.
    if given.get("streamer") is not None:
        return False
    called += _mask_functions(model)
    return all(_is_of(each, _THEIRS) for each in called) and _is_their_cache(
        cache_in(given.get("model_kwargs", {}))
    )


def _has_own_methods(model: nn.Module, kind: type) -> bool:
    worn = [each for each in type(model).__mro__ if each is not undisguised(each)]
    if own_class(type(model)) is not kind or not worn:
        return False
    for name, own in _METHODS.items():
        if name in vars(model) or getattr(GenerationMixin, name, None) is not own:
            return False
        if getattr(kind, name, None) is not own:
            return False
        # What is worn calls the one below.
        if any(name in vars(each) and not _is_of(vars(each)[name], _HERE) for each in worn):
            return False
    return True


def _mask_functions(model: Any) -> Iterator[Any]:
    config = getattr(model, "config", None)
    for each in (config, getattr(config, "get_text_config", lambda: None)()):
        name = getattr(each, "_attn_implementation", None)
        if name in ALL_MASK_ATTENTION_FUNCTIONS:
            yield ALL_MASK_ATTENTION_FUNCTIONS[name]


def _is_their_cache(cache: Any) -> bool:
    parts = [cache, *getattr(cache, "layers", [])]
    return all(type(each).__module__ == "transformers.cache_utils" for each in parts)


def _is_of(function: Any, folder: str) -> bool:
    """Whether a function's code is from a folder."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(folder)
