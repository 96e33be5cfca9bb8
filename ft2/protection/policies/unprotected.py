"""No protection: the model as it is."""

from __future__ import annotations

from torch import Tensor, nn

from ft2.forward import Call, Clock, Tap
from ft2.layers import Projection
from ft2.protection.policy import Policy
from ft2.protection.settings import PolicySettings

__all__ = ["UnprotectedPolicy"]


class UnprotectedPolicy(Policy):
    """Protects nothing and corrects nothing."""

    def __init__(self, settings: PolicySettings) -> None:
        del settings

    def find(self, model: nn.Module) -> list[Projection]:
        return []

    def attach(self, model: nn.Module, layers: list[Projection], clock: Clock) -> list[Tap]:
        return []

    @property
    def counts(self) -> list[int]:
        return []

    def corrected(self, call: Call) -> list[int]:
        return []

    @property
    def left_first_token(self) -> bool:
        return False

    def join(self, call: Call, rows: int, requests: Tensor, others: object, theirs: Tensor) -> None:
        pass
