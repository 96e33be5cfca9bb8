"""The steps of a call that differ from the one before in nothing but their number.

Nearly all steps do. What must be known of one before it is computed costs time that the device
waits for, so of these only what can have changed is looked at, and listeners have said before what
they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ft2.forward.call import Call, Forward, Listener

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
        The step that is computed: one object for all of them, which knows no inputs and holds no
        cache.
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
        self._is_compiled = is_compiled
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
        if not _is_alive(call, forward.rows):
            return None
        preparations = []
        for listener in listeners:
            prepare = listener.forward_repeats(forward)
            if prepare is None:
                return None
            preparations.append(prepare)
        return cls(forward, first_parameter, is_compiled, preparations)

    def is_next(self, call: Call | None, args: Any, kwargs: Any, is_compiled: bool) -> bool:
        """Whether a forward with these arguments, in `call`, is the next step."""
        forward = self.forward
        if call is not forward.call or is_compiled is not self._is_compiled:
            return False
        if not args:
            tokens = kwargs.get("input_ids")
        elif len(args) == 1 and self._takes_ids_first:
            tokens = args[0]
        else:
            return False
        return (
            isinstance(tokens, Tensor)
            and tokens.shape == self._shape
            and (not call.tokens_are_counted or call.tokens_generated == forward.step + 1)
            and _is_alive(call, forward.rows)
        )

    def begin(self) -> Forward:
        """Begin the next step, and return it."""
        forward = self.forward
        call = forward.call
        forward.step = call.step = forward.step + 1
        forward.cached += 1
        call.cached += 1
        for prepare in self._preparations:
            prepare()
        return forward


def _is_alive(call: Call, rows: int) -> bool:
    # A single row that has ended ends the call.
    return rows == 1 or call.ended is None
