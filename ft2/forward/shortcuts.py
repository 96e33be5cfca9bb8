"""Reach a module's parts by a property each, which takes a fraction of ``nn.Module.__getattr__``.

A module keeps its submodules and parameters in dictionaries, and Python looks for each in vain
before it asks for them: in a token's step that takes as long as computing some of the layers. A
property reads the same dictionaries in the same order at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ft2.forward.baked import baked

__all__ = ["shortcuts"]


def shortcuts(kind: Any, modules: Iterable[nn.Module]) -> dict[str, Any]:
    """Return what a class made of `kind` needs: properties for parts of its modules, by name.

    Parameters
    ----------
    kind:
        The modules' class; what it defines itself is left as it is, and one that looks for
        attributes in its own way gets none.
    modules:
        The modules.
    """
    looks_as_usual = (
        getattr(kind, "__getattr__", None) is nn.Module.__getattr__
        and kind.__getattribute__ is object.__getattribute__
        and kind.__setattr__ is nn.Module.__setattr__
    )
    found: dict[str, Any] = {}
    for module in modules if looks_as_usual else ():
        for parts in ("_modules", "_parameters"):
            for name in vars(module)[parts]:
                if name not in found and not hasattr(kind, name):
                    constants = {"a name": name}
                    found[name] = property(
                        baked(_get, constants | {"its parts": parts}),
                        baked(_set, constants),
                        baked(_delete, constants),
                    )
    # TorchScript would compile each property.
    unused = [*getattr(kind, "__jit_unused_properties__", ()), *found]
    return found | {"__jit_unused_properties__": unused} if found else {}


def _get(module: Any) -> Any:
    own = module.__dict__
    if "a name" in own:
        return own["a name"]
    try:
        return own["its parts"]["a name"]
    except KeyError:
        return module.__getattr__("a name")


def _set(module: Any, value: Any) -> None:
    module.__dict__["a name"] = value


def _delete(module: Any) -> None:
    try:
        del module.__dict__["a name"]
    except KeyError:
        raise AttributeError("a name") from None
