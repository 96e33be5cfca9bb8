"""What seated modules wear while compiled code runs: nothing that it would have to check.

Compiled code checks the class of every module before it runs, protected or not, and that no
``forward`` was put into the module. So a disguise with a ``forward`` is checked by what is checked
anyway, but for which module it is. (A class of its own for each would tell that too, but then
Python looks for attributes in too many classes to remember where it found them.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import repeat
from typing import Any

from torch import nn
from torch.compiler import assume_constant_result, is_compiling
from torch.nn.modules import module as _modules

from ft2.forward.baked import baked
from ft2.forward.disguise import Disguise, show_class

__all__ = ["Wardrobe"]


def _no_number(module: int) -> int | None:
    raise NotImplementedError


# The namespace of what follows, as it is written; each model has another one.
lane: Any = None
forwards: dict[str, Callable[..., Any]] = {}
number_of: Callable[[int], int | None] = _no_number
graph: dict[str, bool] = {}


def _forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    output = forwards["its kind"](module, *args, **kwargs)
    number = number_of(id(module))
    # What else is made of the class that the module wears is in no lane.
    if number is None:
        return output
    hidden = args[0] if args else next(iter(kwargs.values()))
    if is_compiling():
        return lane.traced(number, hidden, output)
    output = lane.eager(number, hidden, output)
    graph["is_broken"] = True
    return output


def _telling(kind: Any, graph: dict[str, bool]) -> Callable[..., None]:
    def __setattr__(module: Any, name: str, value: Any) -> None:  # noqa: N807
        if name == "forward":
            graph["is_refitted"] = True
        kind.__setattr__(module, name, value)

    return __setattr__


class _Hanger:
    """What one module wears in eager mode, and what while compiled code runs."""

    def __init__(self, module: nn.Module, eager: Disguise, number: int | None) -> None:
        self.module = weakref.ref(module)
        self.eager = eager
        self.number = number
        self.compiled: Any = None
        # What compiled code last saw.
        self.shown: type | None = None


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
        # Those of other classes than in eager mode, and what shows that these no longer suit.
        self._changed: list[_Hanger] = []
        self._hooks: list[dict[int, Any]] = []
        self._attributes: list[dict[str, Any]] = []
        self._disguises: dict[Any, Disguise] = {}
        self._forwards: dict[str, Callable[..., Any]] = {}
        # Whether compiled code was left, so that layers ran one by one: what they wear in eager
        # mode is made for that. And whether a module was given a forward since they were looked at.
        self._graph = {"is_broken": False, "is_refitted": False}
        seats: dict[int, int] = namespace["seats"]

        def number_of(module: int) -> int | None:
            return seats.get(module)

        namespace |= {
            "forwards": self._forwards,
            "graph": self._graph,
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

    def mend(self) -> None:
        """Try compiled code again, although it was left before."""
        self._graph["is_broken"] = False

    def wear(self, is_for_compiled: bool) -> None:
        """Let the modules wear what suits compiled code, or eager mode.

        A module that wears something else, or has a forward or hooks of its own, keeps what it
        wears in eager mode: past the one, and before the others, no ``forward`` of a class comes.
        """
        suits = not self._graph["is_broken"] and not _modules._has_any_global_hook()
        if is_for_compiled and suits:
            for place, kind in enumerate(self._disguises):
                # Kernels are put into a model by other forwards of its classes.
                self._forwards[str(place)] = kind.forward
            self.look()
            if any(self._hooks) or not self.suits_compiled():
                self._undress()
            if not self.is_for_compiled:
                self._dress()
                self._show()
            return
        self._undress()
        if is_for_compiled:
            self._show()

    def suits_compiled(self) -> bool:
        """Whether no module is known to have a ``forward`` that goes past the one of its class.

        Modules tell of those that are assigned to them. Others are found by :meth:`look`.
        """
        return not self._graph["is_refitted"]

    def look(self) -> None:
        """Look into all modules for a ``forward`` of their own, which takes a while."""
        if any(map(dict.__contains__, self._attributes, repeat("forward"))):
            self._graph["is_refitted"] = True

    def _dress(self) -> None:
        self.is_for_compiled = True
        for hanger in self._hangers:
            module = hanger.module()
            if module is None or type(module) is not hanger.eager.worn:
                continue
            if hanger.number is not None:
                hooks = (module._forward_hooks, module._forward_pre_hooks)
                if any(hooks) or "forward" in vars(module):
                    continue
                self._hooks += hooks
                self._attributes.append(vars(module))
            if hanger.compiled is None:
                hanger.compiled = self._class_for(hanger)
            object.__setattr__(module, "__class__", hanger.compiled)
            self._changed.append(hanger)

    def _undress(self) -> None:
        self.is_for_compiled = False
        self._graph["is_refitted"] = False
        for hanger in self._changed:
            module = hanger.module()
            if module is not None and type(module) is hanger.compiled:
                object.__setattr__(module, "__class__", hanger.eager.worn)
        for each in (self._changed, self._hooks, self._attributes):
            each.clear()

    def _show(self) -> None:
        """Have compiled code look at modules that wear something else than when it ran last."""
        for hanger in self._hangers:
            module = hanger.module()
            if module is not None and type(module) is not hanger.shown:
                hanger.shown = type(module)
                show_class(module)

    def _class_for(self, hanger: _Hanger) -> type:
        kind: Any = hanger.eager.original
        if hanger.number is None:
            return kind
        if kind not in self._disguises:
            name = str(len(self._disguises))
            forward = baked(_forward, {"its kind": name}, self._namespace)
            methods = {"forward": forward, "__setattr__": _telling(kind, self._graph)}
            self._disguises[kind] = Disguise(kind, methods)
            self._forwards[name] = kind.forward
        return self._disguises[kind].worn
