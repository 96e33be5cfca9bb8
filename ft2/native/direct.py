"""The native operations past torch: addresses of values in, nothing out.

While a model decodes, what torch does around an operation takes several times as long as the
operation. These calls do without it. They apply to plain adjacent values only, where nothing wants
to hear of operations, and say whether they did: if not, nothing was done, and torch's own way is
open.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ft2.native import load

__all__ = ["Checked", "DirectChecks", "RestrictionAt", "hears_no_operations"]

# As in csrc/backend.h.
_FORMATS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}

_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
# As in csrc/direct.h.
_ARGUMENTS = {
    "ft2_check_bounds": (_ADDRESS, _ADDRESS, _NUMBER),
    "ft2_check_products": (_ADDRESS, _ADDRESS, _ADDRESS, _NUMBER),
}

_dtype = attrgetter("dtype")


class _Restriction(ctypes.Structure):
    _fields_ = (
        ("bounds", ctypes.c_void_p),
        ("corrected", ctypes.c_void_p),
        ("counted", ctypes.c_void_p),
        ("requests", ctypes.c_uint32),
        ("device", ctypes.c_int32),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("against", ctypes.c_void_p),
        ("columns", ctypes.c_uint32),
        ("inputs", ctypes.c_uint32),
        ("parts", ctypes.c_uint32),
    )


class _Checks(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("roundoffs", ctypes.c_double),
        ("count", ctypes.c_uint32),
        ("flag_count", ctypes.c_uint32),
        ("format", ctypes.c_int32),
        ("device", ctypes.c_int32),
    )


def hears_no_operations() -> bool:
    """Whether no mode, transform or tracer wants to hear of what torch computes."""
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state()
    )


class RestrictionAt:
    """What restricts a layer's outputs, at an address that an operation takes.

    Parameters
    ----------
    bounds:
        fp32 (2, requests), lower ones first, contiguous; it must stay where it is.
    corrected:
        int64 (requests,); updated in place.
    counted:
        bool (requests, 1), whose corrections are counted; None when all are.

    Attributes
    ----------
    address:
        For ``restrict_at``, as long as this object lives.
    """

    __slots__ = ("_held", "address")

    def __init__(self, bounds: Tensor, corrected: Tensor, counted: Tensor | None) -> None:
        at = _Restriction(
            bounds.data_ptr(),
            corrected.data_ptr(),
            None if counted is None else counted.data_ptr(),
            bounds.shape[1],
            bounds.get_device(),
        )
        self._held = (bounds, corrected, counted, at)
        self.address = ctypes.addressof(at)


class Checked:
    """One layer whose outputs are checked.

    Parameters
    ----------
    against:
        fp32, contiguous: bounds (2, parts), or sums of weights (parts, inputs + 1). It must stay
        where it is.
    columns, inputs:
        How many numbers a token has in the layer's output and input.
    parts:
        How many requests have bounds of their own, or how many groups of columns have sums.
    """

    __slots__ = ("against", "columns", "inputs", "parts")

    def __init__(self, against: Tensor, columns: int, inputs: int, parts: int) -> None:
        self.against = against
        self.columns = columns
        self.inputs = inputs
        self.parts = parts


class DirectChecks:
    """Checks the outputs of layers, all of one dtype and with the same tokens.

    Parameters
    ----------
    layers:
        What is checked against, layer by layer.
    flags:
        uint8 (rows,), to be set; it must stay where it is.
    dtype:
        Of outputs and inputs.
    roundoffs:
        As for ``check_products``.

    Raises
    ------
    ValueError
        If the native operations do not serve such outputs, or what is checked against is on another
        device than the flags.
    """

    def __init__(
        self, layers: Sequence[Checked], flags: Tensor, dtype: torch.dtype, roundoffs: float = 0.0
    ) -> None:
        library = _library(flags.device, dtype)
        if {each.against.device for each in layers} - {flags.device}:
            raise ValueError(f"what is checked against is not on {flags.device}")
        self._dtypes, self._devices = {dtype}, {flags.get_device()}
        self._columns = [each.columns for each in layers]
        self._inputs = [each.inputs for each in layers]
        table = (_Layer * len(layers))(
            *(
                _Layer(each.against.data_ptr(), each.columns, each.inputs, each.parts)
                for each in layers
            )
        )
        plan = _Checks(
            ctypes.addressof(table),
            flags.data_ptr(),
            roundoffs,
            len(layers),
            len(flags),
            _FORMATS[dtype],
            flags.get_device(),
        )
        self._held = (list(layers), flags, table, plan)
        self._plan = ctypes.addressof(plan)
        self._parts = {each.parts for each in layers}
        self._check_bounds = _function(library, "ft2_check_bounds")
        self._check_products = _function(library, "ft2_check_products")

    def check_bounds(self, outputs: Sequence[Tensor]) -> bool:
        """Flag rows with a value outside of its bounds; return whether that was possible.

        Parameters
        ----------
        outputs:
            Of each layer, in their order.
        """
        tokens = self._tokens(outputs)
        if not tokens or any(tokens % parts for parts in self._parts):
            return False
        at = _addresses(outputs)
        return 0 not in at and not self._check_bounds(self._plan, at.buffer_info()[0], tokens)

    def check_products(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
        """Flag rows whose columns do not add up; return whether that was possible.

        Parameters
        ----------
        outputs, inputs:
            Of each layer, in their order.
        """
        tokens = self._tokens(outputs)
        if not tokens or not self._are_plain(inputs, self._inputs, tokens):
            return False
        at, given = _addresses(outputs), _addresses(inputs)
        # What is on no device has no address.
        if 0 in at or 0 in given:
            return False
        return not self._check_products(
            self._plan, at.buffer_info()[0], given.buffer_info()[0], tokens
        )

    def _tokens(self, outputs: Sequence[Tensor]) -> int:
        """How many tokens all outputs have; 0 if they are not what these calls take."""
        tokens = outputs[0].numel() // self._columns[0]
        return tokens if self._are_plain(outputs, self._columns, tokens) else 0

    def _are_plain(self, values: Sequence[Tensor], columns: list[int], tokens: int) -> bool:
        numbers = columns if tokens == 1 else [each * tokens for each in columns]
        return (
            list(map(Tensor.numel, values)) == numbers
            and all(map(Tensor.is_contiguous, values))
            and set(map(type, values)) == {Tensor}
            and set(map(_dtype, values)) == self._dtypes
            # A device itself is an object that is made anew each time.
            and set(map(Tensor.get_device, values)) == self._devices
        )


def _addresses(values: Sequence[Tensor]) -> array[int]:
    return array("Q", [*map(Tensor.data_ptr, values)])


def _library(device: torch.device, dtype: torch.dtype) -> ctypes.PyDLL:
    status = load()
    if not status.serves(device) or dtype not in _FORMATS:
        raise ValueError(f"no native operations for {dtype} on {device}")
    found = status.cuda if device.type == "cuda" else status.cpu
    # Calls are short: letting go of the interpreter's lock would take as long.
    return ctypes.PyDLL(found.detail)


def _function(library: ctypes.PyDLL, name: str) -> Callable[..., int]:
    function: Any = library[name]
    function.argtypes = _ARGUMENTS[name]
    function.restype = ctypes.c_int32
    return function
