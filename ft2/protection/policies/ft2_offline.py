"""FT2 with bounds profiled offline instead of on the first token.

FT2 (HPDC '25), section 5.1: "We also use FT2 with bounds obtained from the expensive offline
profiling". Its layers and its correction are FT2's: critical layers, NaN to 0, out of bounds to the
bound. The paper names no scale for these bounds; FT2 widens its own because one prompt's first
token shows too little (section 4.2.1), which holds for no profile, so the reading here is that they
are taken as they were profiled. The first token is protected too, since bounds are there before it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ft2.layers import UnsupportedModelError, projections
from ft2.protection.correction import CLIP, Correction
from ft2.protection.places import Place
from ft2.protection.profiled import ProfiledPolicy
from ft2.protection.settings import PolicySettings

__all__ = ["OfflinePolicy"]


class OfflinePolicy(ProfiledPolicy):
    """Critical layers, clipped to profiled bounds, or set to 0 where users choose so."""

    name: ClassVar[str] = "ft2-offline"
    correction: ClassVar[Correction] = CLIP

    @classmethod
    def places(cls, model: nn.Module) -> list[Place]:
        found = [
            Place.of_columns(
                projection,
                [(start, stop) for start, stop, critical in projection.columns if critical],
            )
            for projection in projections(model)
            if projection.critical
        ]
        if not found:
            raise UnsupportedModelError(
                f"no critical layer was found in this {type(model).__name__}, so there is nothing "
                "that ft2-offline would protect"
            )
        return found

    def _chosen_correction(self, settings: PolicySettings) -> Correction:
        return settings.correction_or(self.correction)
