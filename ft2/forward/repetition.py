"""The steps of a call that differ from the one before in nothing but their number.

Nearly all steps do. What must be known of one before it is computed costs time that the device
waits for, so of these only what can have changed is looked at, and listeners have said before what
they do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ft2.forward.cache_names import cache_in, is_cache
from ft2.forward.call import Call, Forward, Listener
from ft2.forward.compiled_step import CompiledStep

__all__ = ["Repetition"]


class Repetition:
    """Recognises the next step of a call.

    Parameters
    ----------
    forward:
        The step before.
    first_parameter:
        The name of the model's first parameter.
    is_compiled:
        Whether compiled code computed that step.
    preparations:
        What listeners do before such a step.

    Attributes
    ----------
    forward:
        The step that is computed: one object for all of them, which knows no inputs, and the cache
        only while it is computed.
    is_compiled:
        Whether compiled code computes it.
    compiled:
        The code that computes it, if that is known to suit the next step.
    """

    def __init__(
        self,
        forward: Forward,
        first_parameter: str,
        is_compiled: bool,
        preparations: Sequence[Callable[[], None]],
    ) -> None:
        self.forward = replace(forward, inputs={}, cache=None)
        self._shape = torch.Size((forward.rows, 1))
        self._takes_ids_first = first_parameter == "input_ids"
        self._cache = weakref.ref(forward.cache) if is_cache(forward.cache) else None
        self.is_compiled = is_compiled
        self.compiled: CompiledStep | None = None
        self._preparations = tuple(preparations)

    @classmethod
    def after(
        cls,
        forward: Forward,
        first_parameter: str,
        is_compiled: bool,
        listeners: Sequence[Listener],
    ) -> Repetition | None:
        """Return what recognises the step after `forward`, or None if it must be told in full."""
        call = forward.call
        if forward.is_first_token or forward.tokens != 1 or call.kind == "loop":
            return None
        preparations = []
        for listener in listeners:
            prepare = listener.forward_repeats(forward)
            if prepare is None:
                return None
            preparations.append(prepare)
        return cls(forward, first_parameter, is_compiled, preparations)

    def take(self, call: Call | None, args: Any, kwargs: Any, is_compiled: bool) -> Forward | None:
        """Begin a forward with these arguments, in `call`, if it is the next step; else None."""
        forward = self.forward
        if call is not forward.call or is_compiled is not self.is_compiled:
            return None
        if not args:
            tokens = kwargs.get("input_ids")
        elif len(args) == 1 and self._takes_ids_first:
            tokens = args[0]
        else:
            return None
        step = forward.step + 1
        if (
            not isinstance(tokens, Tensor)
            or tokens.shape != self._shape
            or (call.tokens_are_counted and call.tokens_generated != step)
        ):
            return None
        cache = cache_in(kwargs)
        known = None if self._cache is None else self._cache()
        # One that is gone is not the same as none.
        if cache is not known or (cache is None) is not (self._cache is None):
            return None
        forward.cache = cache
        forward.step = call.step = step
        forward.cached += 1
        call.cached += 1
        return forward

    def end(self) -> None:
        """Let go of the cache."""
        self.forward.cache = None

    def abandon(self) -> None:
        """Let go of what listeners hold for further steps."""
        # A traceback, which may be kept, keeps this object.
        self._preparations = ()

    def prepare(self) -> None:
        """Have listeners do what they do before the step."""
        for prepare in self._preparations:
            prepare()
