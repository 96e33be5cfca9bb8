"""Protection: policies, bounds, and how a policy is attached to a model."""

from ft2.protection.attachment import Detection, Protection, protect
from ft2.protection.policies import POLICIES
from ft2.protection.policy import Policy
from ft2.protection.profile import Profile, ProfileError
from ft2.protection.profiling import profile

__all__ = [
    "POLICIES",
    "Detection",
    "Policy",
    "Profile",
    "ProfileError",
    "Protection",
    "profile",
    "protect",
]
