"""Which modules a protection may spare the ways of a module's call, to pay for what it adds.

A token's step is bound by what Python does, and calling a module does a lot before its forward:
it looks for hooks of all kinds, for a tracer, for compiled code. A lane that knows that there are
none (:func:`ft2.forward.lane.hears_nothing`) calls the forward itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from ft2.forward.announcing import announcers
from ft2.forward.clock import clocked_models
from ft2.forward.disguise import undisguised
from ft2.forward.lane import may_be_spared

__all__ = ["sparable"]


def sparable(model: nn.Module, taken: Iterable[str]) -> list[str]:
    """Return the names of modules whose call is what calling any module is, but in training.

    Parameters
    ----------
    model:
        The model. Itself and what it stands on, whose calls the clock announces, are left out, and
        so are models inside of it, which may have clocks of their own.
    taken:
        Names of modules that are left out too.
    """
    by_name = dict(model.named_modules(remove_duplicate=False))
    others = {by_name[name] for name in taken} | set(announcers(model))
    for each in clocked_models():
        others |= set(announcers(each))
    # Each once, by one of its names.
    names = {module: name for name, module in by_name.items()}
    return [
        name
        for module, name in names.items()
        if module not in others
        and may_be_spared(module)
        and not isinstance(
            module, (PreTrainedModel, nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule)
        )
        and _may_be_disguised(undisguised(type(module)))
    ]


def _may_be_disguised(kind: type) -> bool:
    """Whether making a class of this one is not something that it hears of, and may refuse."""
    told = next(each for each in kind.__mro__ if "__init_subclass__" in vars(each))
    is_known = told is object or told.__module__.partition(".")[0] in ("torch", "transformers")
    return type(kind) is type and is_known
