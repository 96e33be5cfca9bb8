"""Functions of a library as builtin ones of Python's, without Python's headers.

A call of one takes a tenth of what ``ctypes`` takes. All that is used is in Python's stable
interface.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

__all__ = ["address_of", "builtin"]

# As Python's headers have it: arguments come as an array and their number.
_FASTCALL = 0x80


class _Method(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_new_function = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.POINTER(_Method), ctypes.py_object, ctypes.c_void_p
)(("PyCFunction_NewEx", ctypes.pythonapi))


def builtin(library: ctypes.CDLL, name: str) -> Callable[..., bool]:
    """Return a function of a library as a builtin one.

    Parameters
    ----------
    library:
        It must stay loaded.
    name:
        The function's; it takes an ignored pointer, an array of objects, and their number.
    """
    method = _Method(name.encode(), address_of(library, name), _FASTCALL, None)
    # What describes a function must live as long as it: so it is what the function is bound to.
    function: Callable[..., bool] = _new_function(ctypes.byref(method), method, None)
    return function


def address_of(library: ctypes.CDLL, name: str) -> int | None:
    """Return where a function of a library is."""
    return ctypes.cast(library[name], ctypes.c_void_p).value
