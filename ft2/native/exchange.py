"""How C reads torch's tensors: DLPack's exchange interface, which torch has since 2.10."""

from __future__ import annotations

import ctypes
import functools

from torch import Tensor

__all__ = ["Exchange", "exchange"]

# The version of the interface that csrc/exchange.h declares.
_MAJOR = 1


class Exchange(ctypes.Structure):
    """As in csrc/exchange.h: torch's functions, and what gives an item of a list."""

    _fields_ = (("functions", ctypes.c_void_p), ("item", ctypes.c_void_p))


@functools.cache
def exchange() -> Exchange | None:
    """Return what C needs to read tensors, or None if torch offers no such interface."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    functions = _pointer_in(capsule, b"dlpack_exchange_api")
    if ctypes.c_uint32.from_address(functions).value != _MAJOR:
        return None
    item = ctypes.cast(ctypes.pythonapi.PyList_GetItem, ctypes.c_void_p)
    return Exchange(functions, item.value)


_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
