"""Which steps known code has computed."""

from __future__ import annotations

from typing import Any

import pytest

from ft2.forward.compiled_step import CompiledStep

__all__ = ["known_steps"]


def known_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that has, from now on, the numbers of the steps that known code computes."""
    steps: list[int] = []
    compute = CompiledStep.__call__

    def noted(step: CompiledStep, arguments: tuple[Any, ...]) -> Any:
        steps.append(arguments[0].forward.step)
        return compute(step, arguments)

    monkeypatch.setattr(CompiledStep, "__call__", noted)
    return steps
