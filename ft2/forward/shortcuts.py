"""Reach a module's parts by a property each, which takes a fraction of ``nn.Module.__getattr__``.

A module keeps its submodules and parameters in dictionaries, and Python looks for each in vain
before it asks for them: in a token's step that takes as long as computing some of the layers. A
property reads the same dictionary at once, so what is exchanged there is seen as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import Any

from torch import nn

__all__ = ["shortcuts"]


def shortcuts(kind: type, modules: Iterable[nn.Module]) -> dict[str, property]:
    """Return properties for the submodules and parameters of modules of one class, by name.

    Parameters
    ----------
    kind:
        Their class; what it defines itself is left as it is.
    modules:
        The modules.
    """
    found: dict[str, property] = {}
    for module in modules:
        for names, template in ((module._modules, _submodule), (module._parameters, _parameter)):
            for name in names:
                if name not in found and not hasattr(kind, name):
                    found[name] = property(_of(template, name), _of(_set, name), _of(_delete, name))
    return found


def _submodule(module: Any) -> Any:
    try:
        return module._modules["a name"]
    except KeyError:
        return otherwise(module, "a name")


def _parameter(module: Any) -> Any:
    try:
        return module._parameters["a name"]
    except KeyError:
        return otherwise(module, "a name")


def _set(module: Any, value: Any) -> None:
    module.__dict__["a name"] = value


def _delete(module: Any) -> None:
    try:
        del module.__dict__["a name"]
    except KeyError:
        raise AttributeError("a name") from None


def otherwise(module: Any, name: str) -> Any:
    """Look where a property does not: what a name stands for may have changed."""
    own = module.__dict__
    return own[name] if name in own else module.__getattr__(name)


def _of(template: Any, name: str) -> FunctionType:
    code = template.__code__
    constants = tuple(name if each == "a name" else each for each in code.co_consts)
    return FunctionType(code.replace(co_consts=constants), template.__globals__, template.__name__)
