"""What seated modules wear while compiled code runs: nothing that it would have to check.

Compiled code checks the class of every module before it runs, protected or not, and that no
``forward`` was put into the module. So a disguise with a ``forward`` is checked by what is checked
anyway, but for which module it is. (A class of its own for each would tell that too, but then
Python looks for attributes in too many classes to remember where it found them.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn
from torch.compiler import assume_constant_result, is_compiling

from ft2.forward.disguise import Disguise

__all__ = ["Wardrobe"]

# The namespace of what follows, as it is written; each model has another one.
lane: Any = None
forwards: dict[str, Callable[..., Any]] = {}
number_of: Callable[[int], int | None] = abs
broken: list[bool] = []


def _forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    output = forwards["its kind"](module, *args, **kwargs)
    number = number_of(id(module))
    # What else is made of the class that the module wears is in no lane.
    if number is None:
        return output
    hidden = args[0] if args else next(iter(kwargs.values()))
    if is_compiling():
        return lane.traced(number, hidden, output)
    broken.append(True)
    return lane.eager(number, hidden, output)


class _Hanger:
    """What one module wears in eager mode, and what while compiled code runs."""

    def __init__(self, module: nn.Module, eager: Disguise, number: int | None) -> None:
        self.module = weakref.ref(module)
        self.eager = eager
        self.number = number
        self.compiled: Any = None
        self.is_for_compiled = False


class Wardrobe:
    """What the seated modules of one model wear in eager mode, and what while compiled code runs.

    Parameters
    ----------
    namespace:
        What the code of all seats shares (:mod:`ft2.forward.lane`).

    Attributes
    ----------
    is_for_compiled:
        Whether they wear what suits compiled code.
    """

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.is_for_compiled = False
        self._namespace = namespace
        self._hangers: list[_Hanger] = []
        self._disguises: dict[type, Disguise] = {}
        self._forwards: dict[str, Callable[..., Any]] = {}
        # Where compiled code is left, layers run one by one, and hooks would come after the lane.
        self._broken: list[bool] = []
        seats: dict[int, int] = namespace["seats"]

        def number_of(module: int) -> int | None:
            return seats.get(module)

        namespace |= {
            "broken": self._broken,
            "forwards": self._forwards,
            # Compiled code checks which module it is, and looks for no number.
            "number_of": assume_constant_result(number_of),
        }

    def add(self, module: nn.Module, eager: Disguise, number: int | None) -> None:
        """Keep what `module` wears in eager mode, and have something else for compiled code.

        Parameters
        ----------
        module:
            The module, to which a weak reference is kept.
        eager:
            What it wears in eager mode.
        number:
            Its number in the lane; None if the lane has nothing of it. Then it is of its own class
            in compiled code, which needs no help to go past the ways of a module's call.
        """
        self._hangers.append(_Hanger(module, eager, number))

    def wear(self, is_for_compiled: bool) -> None:
        """Let the modules wear what suits compiled code, or eager mode.

        A module that wears something else, or has hooks, which must come before the lane, keeps
        what it wears.
        """
        is_for_compiled = is_for_compiled and not self._broken
        if is_for_compiled is self.is_for_compiled:
            return
        self.is_for_compiled = is_for_compiled
        for hanger in self._hangers:
            module = hanger.module()
            if module is None:
                continue
            if not is_for_compiled:
                if hanger.is_for_compiled and type(module) is hanger.compiled:
                    hanger.eager.put_on(module)
                hanger.is_for_compiled = False
            elif type(module) is hanger.eager.worn and not _is_hooked(module):
                if hanger.compiled is None:
                    hanger.compiled = self._class_for(hanger.eager.original, hanger.number)
                object.__setattr__(module, "__class__", hanger.compiled)
                hanger.is_for_compiled = True

    def _class_for(self, kind: Any, number: int | None) -> type:
        if number is None:
            return kind
        if kind not in self._disguises:
            name = str(len(self._forwards))
            self._forwards[name] = kind.forward
            code = _forward.__code__
            constants = tuple(name if each == "its kind" else each for each in code.co_consts)
            own = FunctionType(code.replace(co_consts=constants), self._namespace, "forward")
            self._disguises[kind] = Disguise(kind, {"forward": own})
        return self._disguises[kind].worn


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
