"""Figure 15: FT2 in two number formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from figures import FIGURES
from protections import FT2


@pytest.mark.paper(task="squad", models=["opt-6.7b-mini", "gptj-6b-mini"])
@pytest.mark.parametrize("encoding", ["fp16", "fp32"])
def test_ft2_prevents_sdcs_in_either_format(measured: Callable[..., Any], encoding: str) -> None:
    """Whichever bits are flipped."""
    numbers = measured(FIGURES["15"], encoding)
    assert numbers.points_above_none(FT2) < 0
