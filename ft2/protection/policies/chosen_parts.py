"""FT2's bounds and corrections on chosen kinds of projections, whatever the rule says of them.

FT2 (HPDC '25), section 4.1 and Figure 6: to find out which layers are critical, all are protected
except one kind. It is for such experiments, and no name that users give leads here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ft2.layers import Projection, projections
from ft2.layers.parts import Part, part_of
from ft2.protection.policies.first_token import FirstTokenPolicy
from ft2.protection.settings import PolicySettings

__all__ = ["ChosenPartsPolicy"]


class ChosenPartsPolicy(FirstTokenPolicy):
    """Protects the parts of a model that are chosen.

    Parameters
    ----------
    is_chosen:
        Whether a part is to be protected.
    settings:
        As :class:`FirstTokenPolicy` takes them.
    """

    def __init__(self, is_chosen: Callable[[Part], bool], settings: PolicySettings) -> None:
        super().__init__(settings)
        self._is_chosen = is_chosen

    def find(self, model: nn.Module) -> list[Projection]:
        found = []
        for projection in projections(model):
            columns = tuple(
                (start, stop, self._is_chosen(part_of(projection, critical)))
                for start, stop, critical in projection.columns
            )
            if any(chosen for _, _, chosen in columns):
                found.append(replace(projection, columns=columns))
        return found
