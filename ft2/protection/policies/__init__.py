"""The policies, by the name that users give."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ft2.protection.policies.first_token import FirstTokenPolicy
from ft2.protection.policies.unprotected import UnprotectedPolicy
from ft2.protection.policy import Policy

__all__ = ["POLICIES", "make_policy"]

POLICIES: dict[str, Callable[[float], Policy]] = {
    "ft2": FirstTokenPolicy,
    "none": UnprotectedPolicy,
}


def make_policy(name: str, scale: float) -> Policy:
    """Return a new policy.

    Raises
    ------
    ValueError
        If there is no policy of that name, or `scale` is below 1 or infinite.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown protection {name!r}: use one of {', '.join(POLICIES)}")
    # Anything larger is infinite in fp32, and infinitely many times a bound of 0 is NaN.
    if not 1 <= scale <= torch.finfo(torch.float32).max:
        raise ValueError(f"scale widens the bounds, so it is finite and at least 1, not {scale}")
    return POLICIES[name](scale)
