"""Global Clipper: values and outputs of attention are set to 0 where they leave profiled bounds.

Qutub et al., *Global Clipper: Enhancing Safety and Reliability of Transformer-based Object
Detection Models* (IJCAI-AISafety '24, arXiv:2406.03229). Its code is not public. Read so:

- *Where*: FT2 (HPDC '25), Table 1 and section 3: it "partially protects the linear layers in the
  attention block", ``v_proj`` and ``out_proj``. Its own abstract speaks of activation and linear
  layers within self-attention; queries, keys and activations are left out here, as in the table. Of
  a fused projection it is the columns of the values.
- *Bounds*: least and largest number on the profiling data, as they are.
- *Correction*: out of bounds to 0. That is what its authors' *Clipper* does, after which it is
  named and which they have published (PyTorchALFI, ``Ranger_Clip``); that one sets values *at* a
  bound to 0, too, which would change the very prompts that were profiled: here bounds are within
  bounds. And NaN to 0: it "corrects the Not-a-Number (NaN) values" (FT2, section 3).
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ft2.layers import UnsupportedModelError, projections
from ft2.protection.correction import ZERO, Correction
from ft2.protection.places import Place
from ft2.protection.profiled import ProfiledPolicy

__all__ = ["GlobalClipperPolicy"]


class GlobalClipperPolicy(ProfiledPolicy):
    """Values and outputs of attention, set to 0 where out of bounds."""

    name: ClassVar[str] = "global-clipper"
    correction: ClassVar[Correction] = ZERO

    @classmethod
    def places(cls, model: nn.Module) -> list[Place]:
        kind = type(model).__name__
        found = projections(model)
        values = [each for each in found if each.values]
        if not values or not any(_is_output(each.ends) for each in found):
            raise UnsupportedModelError(
                f"no values and outputs of attention were found in this {kind}, so there is "
                "nothing that global-clipper would protect"
            )
        for each in values:
            if _is_output(each.ends):
                raise UnsupportedModelError(
                    f"global-clipper cannot tell values and outputs of attention apart in this "
                    f"{kind}, where {each.name} is both: use another protection"
                )
        return [
            Place(each) if _is_output(each.ends) else Place.of_columns(each, each.values)
            for each in found
            if each.values or _is_output(each.ends)
        ]


def _is_output(ends: str | None) -> bool:
    return ends == "attention"
