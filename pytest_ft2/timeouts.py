"""How long a run of a user's test may take."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

from pytest_ft2.plan import GatePlan

__all__ = ["golden_timeout", "trial_timeout"]

_LEAST_TIMEOUT = 10.0
_GOLDEN_RUNS_IN_A_TIMEOUT = 20.0


def golden_timeout(item: pytest.Function) -> float | None:
    """Return how long a fault-free run may take, in seconds; None: nobody asked for a limit.

    A limit for the call alone is left to pytest-timeout, which keeps it in every run.
    """
    asked, of_call_alone = _pytest_timeout(item)
    return None if of_call_alone else asked


def trial_timeout(item: pytest.Function, plan: GatePlan, golden_seconds: float) -> float:
    """Return how long one trial may take, in seconds: the shortest that anybody asked for."""
    asked, _ = _pytest_timeout(item)
    limits = [limit for limit in (plan.trial_timeout, asked) if limit is not None]
    return min(limits, default=max(_LEAST_TIMEOUT, _GOLDEN_RUNS_IN_A_TIMEOUT * golden_seconds))


def _pytest_timeout(item: pytest.Function) -> tuple[float | None, bool]:
    """Return what pytest-timeout is asked for: seconds, and whether they are the call's alone."""
    if not item.config.pluginmanager.hasplugin("timeout"):
        return None, False
    asked: Any = None
    of_call_alone: Any = None
    mark = item.get_closest_marker("timeout")
    if mark is not None:
        names = ("timeout", "method", "func_only")
        given = {**dict(zip(names, mark.args, strict=False)), **mark.kwargs}
        asked, of_call_alone = given.get("timeout"), given.get("func_only")
    if asked is None:
        asked = item.config.getoption("timeout", None)
    if asked is None:
        asked = os.environ.get("PYTEST_TIMEOUT") or item.config.getini("timeout")
    if of_call_alone is None:
        of_call_alone = item.config.getini("timeout_func_only")
    try:
        seconds = float(asked)
    except (TypeError, ValueError):
        return None, False
    return (seconds, bool(of_call_alone)) if 0 < seconds < math.inf else (None, False)
