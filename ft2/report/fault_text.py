"""What a fault's text says, without its class, which would bring torch into whoever only counts."""

from __future__ import annotations

__all__ = ["fault_fields"]


def fault_fields(text: str) -> dict[str, str]:
    """Return the fields of a fault's text.

    Examples
    --------
    >>> fault_fields("call=0,step=3,layer=h.0.fc,row=0,position=0,neuron=7,bits=3:14")["bits"]
    '3:14'
    """
    return dict(field.split("=") for field in text.split(","))
