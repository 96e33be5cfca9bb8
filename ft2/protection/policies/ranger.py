"""Ranger: the outputs of activations are clamped to profiled bounds.

Chen, Li and Pattabiraman, *A Low-cost Fault Corrector for Deep Neural Networks through Range
Restriction* (DSN '21). Read so:

- *Where*: FT2 (HPDC '25), section 6: "Ranger protects only the output of activation layers". These
  are the elementwise activations between two linear layers of a block, an MLP's. Ranger's own
  transformation goes on, for convolutional networks, to the pooling, reshaping and concatenation
  behind an activation; of these a decoder block has none. A softmax stays within [0, 1] by itself.
- *Bounds*: least and largest number on the profiling data, as they are: Ranger's default keeps all
  of them (its percentiles trade accuracy for resilience).
- *Correction*: out of bounds to the bound, by a minimum and a maximum, as in Ranger's TensorFlow
  operators and in those of Intel's PyTorchALFI and OpenVINO. These keep NaN, and so does this.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ft2.layers import UnsupportedModelError, activations
from ft2.protection.correction import CLAMP, Correction
from ft2.protection.places import Place
from ft2.protection.profiled import ProfiledPolicy

__all__ = ["RangerPolicy"]


class RangerPolicy(ProfiledPolicy):
    """Outputs of activations, clamped; NaN is kept."""

    name: ClassVar[str] = "ranger"
    correction: ClassVar[Correction] = CLAMP

    @classmethod
    def places(cls, model: nn.Module) -> list[Place]:
        found = activations(model)
        kind = type(model).__name__
        if not found:
            raise UnsupportedModelError(
                f"no activation was found between linear layers of this {kind}, so there is "
                "nothing that ranger would protect"
            )
        functions = [each for each in found if not each.is_module]
        if functions:
            first = functions[0]
            raise UnsupportedModelError(
                f"ranger restricts what activations put out, and {first.name or 'the model'} of "
                f"this {kind} computes {first.function} itself rather than in a module of its own, "
                "so that it cannot be reached: use another protection"
            )
        return [Place(each) for each in found]
