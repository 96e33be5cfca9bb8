"""Measure and reduce silent data corruption in generative language models.

The names below are the public interface; they are imported when first used, so that the rooms that
need no torch can be used without importing it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ft2.campaign import Campaign
    from ft2.faults import Fault, Injection, inject
    from ft2.forward import request
    from ft2.layers import Projection, UnsupportedModelError, projections
    from ft2.protection import Detection, Profile, ProfileError, Protection, profile, protect
    from ft2.verdict import compare

__version__ = "0.1.0"

__all__ = [
    "Campaign",
    "Detection",
    "Fault",
    "Injection",
    "Profile",
    "ProfileError",
    "Projection",
    "Protection",
    "UnsupportedModelError",
    "__version__",
    "compare",
    "inject",
    "profile",
    "projections",
    "protect",
    "request",
]

_ROOMS = {
    "Campaign": "ft2.campaign",
    "Detection": "ft2.protection",
    "Fault": "ft2.faults",
    "Injection": "ft2.faults",
    "Profile": "ft2.protection",
    "ProfileError": "ft2.protection",
    "Projection": "ft2.layers",
    "Protection": "ft2.protection",
    "UnsupportedModelError": "ft2.layers",
    "compare": "ft2.verdict",
    "inject": "ft2.faults",
    "profile": "ft2.protection",
    "projections": "ft2.layers",
    "protect": "ft2.protection",
    "request": "ft2.forward",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'ft2' has no attribute {name!r}")
    value = getattr(import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
