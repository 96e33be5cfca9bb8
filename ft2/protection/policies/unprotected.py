"""No protection: the model as it is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ft2.forward import Call, Clock
from ft2.protection.policy import Policy

__all__ = ["UnprotectedPolicy"]


class UnprotectedPolicy(Policy):
    """Protects nothing and corrects nothing."""

    def __init__(self, scale: float) -> None:
        del scale

    def transforms(self, model: nn.Module, clock: Clock) -> dict[str, Callable[[Tensor], Tensor]]:
        return {}

    @property
    def counts(self) -> list[int]:
        return []

    def corrected(self, call: Call) -> list[int]:
        return []

    @property
    def left_first_token(self) -> bool:
        return False
