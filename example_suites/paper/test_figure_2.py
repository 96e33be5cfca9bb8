"""Figure 2: what existing protections leave, FT2 prevents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES
from protections import FT2, RIVALS
from results import pairs


@pytest.mark.paper(task="gsm8k", models=["llama2-7b-mini"])
def test_ft2_leaves_fewer_sdcs_than_any_rival(measured: Callable[..., Any]) -> None:
    """On the same faults."""
    numbers = measured(FIGURES["2"])
    assert numbers.points_above_none(FT2) < 0
    for other in RIVALS:
        assert pairs([numbers.of(other)], [numbers.of(FT2)]).difference <= 0, other
