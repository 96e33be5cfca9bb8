"""Which modules a protection may spare the ways of a module's call, to pay for what it adds.

A token's step is bound by what Python does, and calling a module does a lot before its forward:
it looks for hooks of all kinds, for a tracer, for compiled code. A lane that knows that there are
none (:func:`ft2.forward.lane.hears_nothing`) calls the forward itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ft2.forward.clock import announcers
from ft2.forward.lane import takes_a_seat

__all__ = ["sparable"]


def sparable(model: nn.Module, taken: Iterable[str]) -> list[str]:
    """Return the names of modules whose call is what calling any module is.

    Parameters
    ----------
    model:
        The model. Itself and its base, whose calls the clock announces, are left out.
    taken:
        Names of modules that are left out too.
    """
    others = {model.get_submodule(name) for name in taken} | set(announcers(model))
    return [
        name
        for name, module in model.named_modules()
        if module not in others
        and takes_a_seat(module)
        and not isinstance(module, (nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule))
    ]
