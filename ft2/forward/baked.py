"""Functions of one template's code, each with constants of its own in it.

A constant in the code is looked up nowhere: not by Python in each call, and compiled code has
nothing to check.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

__all__ = ["baked"]


def baked(
    template: Any, constants: dict[str, str], namespace: dict[str, Any] | None = None
) -> FunctionType:
    """Return a function of the template's code, with other constants.

    Parameters
    ----------
    template:
        A function without defaults or closure.
    constants:
        What stands in place of which strings.
    namespace:
        The function's globals; None: the template's.

    Raises
    ------
    ValueError
        If the template does not have one of the strings.
    """
    code = template.__code__
    missing = constants.keys() - {each for each in code.co_consts if isinstance(each, str)}
    if missing:
        raise ValueError(f"{template.__name__} has no constant {sorted(missing)}")
    found = tuple(
        constants.get(each, each) if isinstance(each, str) else each for each in code.co_consts
    )
    scope = template.__globals__ if namespace is None else namespace
    return FunctionType(code.replace(co_consts=found), scope, template.__name__)
