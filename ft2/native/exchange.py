"""How C reads torch's tensors: DLPack's exchange interface, which torch has since 2.10."""

from __future__ import annotations

import ctypes
import functools

from torch import Tensor

from ft2.native.builtin import address_of

__all__ = ["Exchange", "exchange"]

# The version of the interface that csrc/exchange.h declares.
_MAJOR = 1


class _Functions(ctypes.Structure):
    """As in dlpack.h."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("object_from_managed", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    )


class Exchange(ctypes.Structure):
    """As in csrc/exchange.h: what C calls of torch's and of Python's."""

    _fields_ = (
        ("functions", ctypes.c_void_p),
        ("item", ctypes.c_void_p),
        ("address", ctypes.c_void_p),
        ("boolean", ctypes.c_void_p),
        ("forget_error", ctypes.c_void_p),
    )


_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@functools.cache
def exchange() -> Exchange | None:
    """Return what C needs to read tensors, or None if torch offers no such interface."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    try:
        at = _pointer_in(capsule, b"dlpack_exchange_api")
    except ValueError:
        return None
    functions = _Functions.from_address(at)
    # Version 1 lets this function be left out.
    if functions.major != _MAJOR or not functions.tensor_from_object:
        return None
    names = ("PyList_GetItem", "PyLong_AsVoidPtr", "PyBool_FromLong", "PyErr_Clear")
    return Exchange(at, *(address_of(ctypes.pythonapi, each) for each in names))
