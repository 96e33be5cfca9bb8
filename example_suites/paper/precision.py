"""In which arithmetic a model computes, and in which number format faults flip bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ft2.faults.formats import FORMATS

__all__ = ["Precision"]

_ARITHMETIC = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Precision:
    """Arithmetic and encoding.

    Attributes
    ----------
    arithmetic:
        The format of weights and activations.
    encoding:
        The format whose bits are flipped.
    """

    arithmetic: str
    encoding: str

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read ``fp16``, or ``fp32:fp16`` for fp32 arithmetic with the bits of fp16 flipped.

        Raises
        ------
        ValueError
            If a name is unknown, or the arithmetic does not hold the encoding's numbers.
        """
        arithmetic, _, encoding = text.partition(":")
        encoding = encoding or arithmetic
        if arithmetic not in _ARITHMETIC or encoding not in FORMATS:
            raise ValueError(
                f"{text!r} is no precision: use fp16, bf16 or fp32, or an arithmetic and the "
                "encoding whose bits are flipped, such as fp32:fp16"
            )
        if not FORMATS[arithmetic].holds(FORMATS[encoding]):
            raise ValueError(
                f"{text!r} is no precision: {arithmetic} does not hold all numbers of {encoding}"
            )
        return cls(arithmetic, encoding)

    def __str__(self) -> str:
        same = self.arithmetic == self.encoding
        return self.arithmetic if same else f"{self.arithmetic}:{self.encoding}"

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic's dtype."""
        return FORMATS[self.arithmetic].dtype

    @property
    def is_half(self) -> bool:
        """Whether rounding is coarse enough for a batch's shape to change a text."""
        return self.arithmetic != "fp32"
