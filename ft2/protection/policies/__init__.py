"""The policies, by the name that users give."""

from __future__ import annotations

from collections.abc import Callable

from ft2.protection.policies.first_token import FirstTokenPolicy
from ft2.protection.policies.ft2_offline import OfflinePolicy
from ft2.protection.policies.global_clipper import GlobalClipperPolicy
from ft2.protection.policies.maximals import MaxiMalsPolicy
from ft2.protection.policies.ranger import RangerPolicy
from ft2.protection.policies.recompute import RecomputePolicy
from ft2.protection.policies.unprotected import UnprotectedPolicy
from ft2.protection.policy import Policy
from ft2.protection.profile import ProfileError
from ft2.protection.profiled import ProfiledPolicy
from ft2.protection.settings import PolicySettings

__all__ = ["POLICIES", "make_policy", "profiled_policy"]

POLICIES: dict[str, Callable[[PolicySettings], Policy]] = {
    "ft2": FirstTokenPolicy,
    "none": UnprotectedPolicy,
    "ranger": RangerPolicy,
    "maximals": MaxiMalsPolicy,
    "global-clipper": GlobalClipperPolicy,
    "ft2-offline": OfflinePolicy,
    "ft2-recompute": RecomputePolicy,
}


def make_policy(name: str, settings: PolicySettings) -> Policy:
    """Return a new policy.

    Raises
    ------
    ValueError
        If there is no policy of that name, or its settings are not for it.
    """
    policy = _named(name)
    recomputes = policy is RecomputePolicy
    if settings.bounds is not None and not (_is_profiled(policy) or recomputes):
        raise ProfileError(f"{name} takes no profiled bounds: leave them out")
    if (settings.detect is not None or settings.group is not None) and not recomputes:
        raise ValueError(f"{name} detects in its own way: detect and group are for ft2-recompute")
    return policy(settings)


def profiled_policy(name: str) -> type[ProfiledPolicy]:
    """Return the policy with profiled bounds of that name.

    Raises
    ------
    ValueError
        If there is none.
    """
    policy = _named(name)
    if isinstance(policy, type) and issubclass(policy, ProfiledPolicy):
        return policy
    known = ", ".join(each for each in POLICIES if _is_profiled(POLICIES[each]))
    raise ValueError(f"{name} has no bounds to profile: use one of {known}")


def _named(name: str) -> Callable[[PolicySettings], Policy]:
    if name not in POLICIES:
        raise ValueError(f"unknown protection {name!r}: use one of {', '.join(POLICIES)}")
    return POLICIES[name]


def _is_profiled(policy: object) -> bool:
    return isinstance(policy, type) and issubclass(policy, ProfiledPolicy)
