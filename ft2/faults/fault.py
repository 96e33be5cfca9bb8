"""A fault: which bits of which value are flipped, and its form as text."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ft2.faults.formats import check_bits, number_format

__all__ = ["Fault"]

_LAYER = re.compile(r"[A-Za-z0-9._]+")


@dataclass(frozen=True)
class Fault:
    """Bits flipped in one value that one layer computes.

    Attributes
    ----------
    call:
        Which call of the model, counted from 0 since the injector was attached.
    step:
        Which step of that call; 0 computes the first token.
    layer:
        The projection's name, as in :func:`ft2.projections`.
    row:
        Row of the batch that the call computes.
    position:
        Which of the tokens that the layer computes in this step, padding counted; over all its
        runs, where the prefill takes several.
    neuron:
        Column of the layer's output.
    bits:
        Numbers of the flipped bits, ascending, 0 the least significant.
    encoding:
        The number format whose bits they are, or None for the value's own.

    Raises
    ------
    ValueError
        If a number is negative or not whole, no bit, the same bit twice or one that the encoding
        does not have is named, or the layer's name or the encoding is not one.

    Examples
    --------
    >>> fault = Fault(call=0, step=3, layer="model.layers.0.mlp.up_proj", row=0, position=0,
    ...               neuron=17, bits=(14,), encoding="fp16")
    >>> str(fault)
    'call=0,step=3,layer=model.layers.0.mlp.up_proj,row=0,position=0,neuron=17,bits=14,encoding=fp16'
    >>> Fault.parse(str(fault)) == fault
    True
    """

    call: int
    step: int
    layer: str
    row: int
    position: int
    neuron: int
    bits: tuple[int, ...]
    encoding: str | None = None

    def __post_init__(self) -> None:
        for name in ("call", "step", "row", "position", "neuron"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"a fault's {name} is a whole number from 0, not {value!r}")
        if not _LAYER.fullmatch(self.layer):
            raise ValueError(f"{self.layer!r} is not the name of a layer")
        if not self.bits or sorted(set(self.bits)) != list(self.bits) or self.bits[0] < 0:
            raise ValueError(
                f"a fault's bits are distinct, ascending and at least one, not {self.bits}"
            )
        if self.encoding is not None:
            check_bits(self.bits, number_format(self.encoding))

    def __str__(self) -> str:
        parts = vars(self) | {"bits": ":".join(map(str, self.bits))}
        return ",".join(f"{name}={value}" for name, value in parts.items() if value is not None)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read a fault back from its text.

        Raises
        ------
        ValueError
            If `text` is not the text of a fault; the message says what is wrong with it.
        """
        parts: dict[str, str] = {}
        for part in text.strip().split(","):
            name, sign, value = part.partition("=")
            if not sign or name in parts:
                raise ValueError(f"not a fault: {part!r} in {text!r} should read name=value, once")
            parts[name] = value
        known = [field.name for field in fields(cls)]
        missing = [name for name in known if name not in parts and name != "encoding"]
        unknown = [name for name in parts if name not in known]
        if missing or unknown:
            wrong = [f"{name} is missing" for name in missing]
            wrong += [f"{name!r} is not part of one" for name in unknown]
            raise ValueError(f"not a fault: {text!r}: {', '.join(wrong)}")
        return cls(
            layer=parts["layer"],
            bits=tuple(_integer("bits", bit) for bit in parts["bits"].split(":")),
            encoding=parts.get("encoding"),
            **{
                name: _integer(name, parts[name])
                for name in ("call", "step", "row", "position", "neuron")
            },
        )


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(f"not a fault: {name}={text!r} should be a whole number from 0")
    return int(text)
