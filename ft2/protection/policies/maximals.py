"""MaxiMals: what attention and the MLP put out is restricted to profiled bounds, widened.

Roquet et al., *Cross-Layer Reliability Evaluation and Efficient Hardening of Large Vision
Transformers Models* (DAC '24), and its code (``diehardnet/maximals``, ``hardened_identity.py``).
Read so:

- *Where*: FT2 (HPDC '25), Table 1 and section 6: "the output of attention blocks and MLPs", that is
  ``out_proj`` and ``fc2`` or ``down_proj``. The code hardens the ``Identity`` modules of vision
  transformers, which stand behind these (dropout and layer scale) and in other places.
- *Bounds*: least and largest number times 1.3, the code's ``BOUND_RATIO``. The code takes one pair
  for the whole model, rounded to whole numbers; here, as FT2's text has it of all range
  restriction, each layer has its own, not rounded. The code multiplies: a positive minimum moves up
  and cuts off numbers that were seen. Here bounds only move outwards, by 0.3 of their size.
- *Correction*: NaN to 0, and a clamp, as the paper and the code at its publication have it
  (``nan_to_num`` and ``clamp``). A later state of the code sets what is out of bounds to 0.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ft2.layers import UnsupportedModelError, activations, projections
from ft2.protection.correction import CLIP, Correction
from ft2.protection.places import Place
from ft2.protection.profiled import ProfiledPolicy

__all__ = ["MaxiMalsPolicy"]


class MaxiMalsPolicy(ProfiledPolicy):
    """Last projections of attention and of the MLP, clipped to bounds times 1.3."""

    name: ClassVar[str] = "maximals"
    scale: ClassVar[float] = 1.3
    correction: ClassVar[Correction] = CLIP

    @classmethod
    def places(cls, model: nn.Module) -> list[Place]:
        kind = type(model).__name__
        found = [each for each in projections(model) if each.ends is not None]
        if not any(each.ends == "mlp" for each in found):
            raise UnsupportedModelError(
                f"no last projection of an MLP was found in this {kind}, so maximals would protect "
                "half of what it is for: use another protection"
            )
        # The path of a parameter that holds several experts is that of all of them.
        known = {path for each in found for path in (each.name, each.name.rpartition(".")[0])}
        for activation in activations(model):
            missed = [path for path in activation.into if path not in known]
            if activation.is_module and missed:
                raise UnsupportedModelError(
                    f"maximals cannot tell whether {missed[0]} is the last projection of an MLP in "
                    f"this {kind}: use another protection"
                )
        return [Place(each) for each in found]
