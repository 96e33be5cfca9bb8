"""Figure 9: how far the bounds of the first token are widened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES
from protections import FT2


@pytest.mark.paper(task="gsm8k", models=["qwen2-7b-mini"])
def test_wider_bounds_touch_fewer_healthy_values_and_still_prevent_sdcs(
    measured: Callable[..., Any],
) -> None:
    """Not widened at all, bounds correct the most values where there is no fault."""
    numbers = measured(FIGURES["9"])
    own = numbers.of(FT2)
    narrow, wide = numbers.of(f"{FT2}, scale 1"), numbers.of(f"{FT2}, scale 4")
    assert narrow.fault_free.corrected >= own.fault_free.corrected >= wide.fault_free.corrected
    assert own.fault_free.wrong == 0
    assert numbers.points_above_none(FT2) < 0
