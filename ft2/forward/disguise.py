"""Give one module methods of its own, and take them away again without a trace.

The module's ``__class__`` is exchanged for a subclass made for it alone. ``torch.compile`` guards
on a module's class, so code compiled before sees the change (a forward hook added after compiling
is ignored, pytorch#117758); nothing stays written into the module, so ``state_dict``, ``vars`` and
``isinstance`` are as before; and copies and pickles are made of the class it really has.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["Disguise", "own_class", "show_class", "undisguised"]


class Disguise:
    """The subclass that one module can wear, and the class it has without it.

    Parameters
    ----------
    original:
        The module's class.
    methods:
        What the class has by name: methods, which take the module first, and properties.
    """

    def __init__(self, original: type, methods: Mapping[str, Any]) -> None:
        self.original = original
        self.worn = _subclass(self.original, methods)
        _ORIGINALS[self.worn] = self.original

    def put_on(self, module: nn.Module) -> None:
        # Past the module's own __setattr__, which looks for parameters.
        object.__setattr__(module, "__class__", self.worn)
        show_class(module)

    def take_off(self, module: nn.Module) -> None:
        if type(module) is self.worn:
            object.__setattr__(module, "__class__", self.original)
            show_class(module)


def show_class(module: nn.Module) -> None:
    """Have code that was compiled before look at the module's class, which was exchanged.

    Where Python tells of changes of dictionaries (3.12), some versions of torch check nothing of a
    module as long as none of its dictionaries changes (``use_recursive_dict_tags_for_guards``).
    """
    own = vars(module)
    # Python 3.13.0 tells of no change of an object's own (cpython#125608).
    for each in (own, own.get("_parameters", own)):
        each[_CHANGED] = None
        del each[_CHANGED]


_CHANGED = "_ft2_changed_class"

_ORIGINALS: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def undisguised(kind: type) -> type:
    """Return the class that a module of class `kind` has without a disguise."""
    return _ORIGINALS.get(kind, kind)


def own_class(kind: type) -> type:
    """Return the class that a module of class `kind` has without any disguises."""
    while undisguised(kind) is not kind:
        kind = undisguised(kind)
    return kind


def _subclass(original: Any, methods: Mapping[str, Any]) -> type:
    def reduce_ex(self: Any, protocol: Any) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if isinstance(reduced, tuple) and reduced[1][:1] == (type(self),):
            plain = (original, object, None)
            return (copyreg._reconstructor, plain, *reduced[2:])  # type: ignore[attr-defined]
        return reduced

    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce_ex,
        **methods,
    }
    worn = type(original.__name__, (original,), namespace)
    # Classes may do something to each that is made of them, as wrapping its forward.
    for name in [name for name in vars(worn) if name not in namespace and name[:1] != "_"]:
        delattr(worn, name)
    return worn
