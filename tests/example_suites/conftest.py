"""What the tests of example suites share."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from ft2.protection import POLICIES


@pytest.fixture(autouse=True)
def _forget_policies_of_experiments() -> Generator[None, None, None]:
    """Take out again what a figure registered, which other tests would take for ft2's own."""
    known = dict(POLICIES)
    yield
    POLICIES.clear()
    POLICIES.update(known)
