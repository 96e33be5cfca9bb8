"""The protections that are compared: every registered policy, and FT2 in both of its readings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ft2.protection import POLICIES, Profile
from ft2.protection.policies import profiled_policy

__all__ = ["FT2", "NONE", "RIVALS", "ZERO", "Protection", "protections"]

NONE, FT2, ZERO = "none", "ft2", "ft2, zero"
RIVALS = ("ranger", "maximals", "global-clipper")
_FIRST = (NONE, *RIVALS, "ft2-offline", FT2)


@dataclass(frozen=True)
class Protection:
    """A policy with its settings.

    Attributes
    ----------
    label:
        Its name in tables.
    policy, scale, correction:
        As in :func:`ft2.protect`.
    """

    label: str
    policy: str
    scale: float | None = None
    correction: Literal["clip", "zero"] | None = None

    @property
    def is_profiled(self) -> bool:
        """Whether it needs bounds that were profiled offline."""
        try:
            profiled_policy(self.policy)
        except ValueError:
            return False
        return True

    def settings(self, profile: Profile | None) -> dict[str, Any]:
        """Return what :func:`ft2.protect` and the batch engine take beside the model."""
        return {
            "policy": self.policy,
            "scale": self.scale,
            "bounds": profile if self.is_profiled else None,
            "correction": self.correction,
        }


def protections() -> dict[str, Protection]:
    """Return the protections by label: the paper's in the order of its Figure 13, then the others.

    FT2 is there twice: its text has values out of bounds clipped to the bound (section 4.3), its
    published code sets them to zero.
    """
    # What is no class was registered for an experiment.
    others = (name for name, policy in POLICIES.items() if isinstance(policy, type))
    names = [*_FIRST, *(name for name in others if name not in _FIRST)]
    found = [Protection(name, name) for name in names]
    found.insert(len(_FIRST), Protection(ZERO, FT2, correction="zero"))
    return {each.label: each for each in found}
