"""What a user can set of a policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ft2.protection.correction import CORRECTIONS, Correction
from ft2.protection.profile import Profile

__all__ = ["DETECTORS", "PolicySettings"]

DETECTORS = ("checksums", "bounds", "checksums+bounds")


@dataclass(frozen=True)
class PolicySettings:
    """What a policy is made with; None where it is left to the policy.

    Attributes
    ----------
    scale:
        How far bounds are widened: a bound b becomes b ∓ (scale - 1)·\\|b\\|; at least 1.
    correction:
        What is done with values out of bounds: ``clip`` or ``zero``.
    bounds:
        Bounds profiled offline.
    detect:
        What detects wrong values: ``checksums``, ``bounds`` or ``checksums+bounds``.
    group:
        How many columns a checksum has; 0 for all of a layer's.

    Raises
    ------
    ValueError
        If the scale is below 1 or infinite, the correction or what detects unknown, or the group
        negative.
    """

    scale: float | None = None
    correction: str | None = None
    bounds: Profile | None = None
    detect: str | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        scale = 1.0 if self.scale is None else self.scale
        # Anything larger is infinite in fp32, and infinitely many times a bound of 0 is NaN.
        if not 1 <= scale <= torch.finfo(torch.float32).max:
            raise ValueError(
                f"scale widens the bounds, so it is finite and at least 1, not {scale}"
            )
        if self.correction is not None and self.correction not in CORRECTIONS:
            raise ValueError(
                f"unknown correction {self.correction!r}: use one of {', '.join(CORRECTIONS)}"
            )

        if self.detect is not None and self.detect not in DETECTORS:
            raise ValueError(
                f"nothing detects by {self.detect!r}: use one of {', '.join(DETECTORS)}"
            )
        if self.group is not None and self.group < 0:
            raise ValueError(f"group is a number of columns, or 0 for all, not {self.group}")

    def scale_or(self, default: float) -> float:
        """Return the scale, or the policy's own."""
        return default if self.scale is None else self.scale

    def correction_or(self, default: Correction) -> Correction:
        """Return the correction, or the policy's own."""
        return default if self.correction is None else CORRECTIONS[self.correction]
