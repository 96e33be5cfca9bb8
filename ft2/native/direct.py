"""The native operations past torch: tensors in by C alone, nothing out.

While a model decodes, what torch does around an operation takes several times as long as the
operation. These calls do without it. They apply to plain adjacent values only, where nothing wants
to hear of operations, and say whether they did: if not, nothing was done, and torch's own way is
open. Profilers see nothing of them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ft2.native import load
from ft2.native.builtin import builtin
from ft2.native.exchange import exchange

__all__ = [
    "Checked",
    "DirectChecks",
    "DirectRestriction",
    "RestrictionAt",
    "direct_restriction",
    "hears_no_operations",
]

# As in csrc/backend.h.
_FORMATS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}


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


class DirectRestriction:
    """What ``restrict_at`` and ``record_at`` do, past torch, on one type of device.

    Parameters
    ----------
    device:
        ``"cpu"`` or ``"cuda"``.

    Attributes
    ----------
    restrict, record:
        Take a plain tensor, of no class of its own and without a negative bit, and the address of
        a :class:`RestrictionAt`. They say whether they did it: not where values are not adjacent,
        or elsewhere, nor where they are so many that other threads would have to wait.

    Raises
    ------
    ValueError
        If the native operations do not serve such a device, or torch lets no C read its tensors.
    """

    __slots__ = ("record", "restrict")

    def __init__(self, device: str) -> None:
        library = _library(device)
        self.restrict = builtin(library, "ft2_restrict")
        self.record = builtin(library, "ft2_record")


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
        If the native operations do not serve such outputs, if what is checked against is on another
        device than the flags, if there is no layer, or if torch lets no C read its tensors.
    """

    def __init__(
        self, layers: Sequence[Checked], flags: Tensor, dtype: torch.dtype, roundoffs: float = 0.0
    ) -> None:
        library = _library(flags.device.type)
        if dtype not in _FORMATS:
            raise ValueError(f"no native operations for {dtype}")
        if {each.against.device for each in layers} - {flags.device}:
            raise ValueError(f"what is checked against is not on {flags.device}")
        if not layers:
            raise ValueError("no layer is to be checked")
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
        self._count = len(layers)
        self._check_bounds = builtin(library, "ft2_check_bounds")
        self._check_products = builtin(library, "ft2_check_products")

    def check_bounds(self, outputs: list[Tensor]) -> bool:
        """Flag rows with a value outside of its bounds; return whether that was possible.

        Parameters
        ----------
        outputs:
            Of each layer, in their order.
        """
        return self._check(self._check_bounds, outputs)

    def check_products(self, outputs: list[Tensor], inputs: list[Tensor]) -> bool:
        """Flag rows whose columns do not add up; return whether that was possible.

        Parameters
        ----------
        outputs, inputs:
            Of each layer, in their order.
        """
        return self._check(self._check_products, outputs, inputs)

    def _check(self, check: Callable[..., bool], *tensors: list[Tensor]) -> bool:
        # C takes any object there for a tensor.
        are_plain = all(
            len(each) == self._count and set(map(type, each)) == {Tensor} for each in tensors
        )
        return are_plain and check(self._plan, *tensors)


@functools.cache
def direct_restriction(device: str) -> DirectRestriction | None:
    """Return the one for a type of device, or None where there is none."""
    try:
        return DirectRestriction(device)
    except ValueError:
        return None


@functools.cache
def _library(device: str) -> ctypes.CDLL:
    """The library for a type of device, knowing how to read tensors."""
    status, tensors = load(), exchange()
    if not status.serves(torch.device(device)):
        raise ValueError(f"no native operations on {device}")
    if tensors is None:
        raise ValueError("torch offers no exchange of tensors in C, as DLPack 1 has it")
    found = status.cuda if device == "cuda" else status.cpu
    # Calls are short: letting go of the interpreter's lock would take as long.
    library = ctypes.PyDLL(found.detail)
    library["ft2_use_exchange"](ctypes.byref(tensors))
    return library
