"""Fault models: which bits of a value one fault flips."""

from __future__ import annotations

from collections.abc import Callable

from ft2.faults.draw import Draw
from ft2.faults.formats import NumberFormat
from ft2.faults.models.exponent import exponent
from ft2.faults.models.one_bit import one_bit
from ft2.faults.models.two_bit import two_bit

__all__ = ["FAULT_MODELS", "FaultModel", "fault_model"]

FaultModel = Callable[[NumberFormat, Draw], tuple[int, ...]]

FAULT_MODELS: dict[str, FaultModel] = {
    "1-bit": one_bit,
    "2-bit": two_bit,
    "exp": exponent,
}


def fault_model(name: str) -> FaultModel:
    """Return the fault model called `name`.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return FAULT_MODELS[name]
    except KeyError:
        raise ValueError(
            f"unknown fault model {name!r}: use one of {', '.join(FAULT_MODELS)}"
        ) from None
