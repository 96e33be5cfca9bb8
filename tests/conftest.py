"""What all tests of this project have in common."""

from __future__ import annotations

from collections.abc import Generator

import hypothesis
import pytest
import torch
from torch._dynamo.utils import counters

pytest_plugins = ["pytester"]

# A machine that is busy with something else is no defect.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _fewest_checks() -> Generator[None, None, None]:
    """Have compiled code check as little as in any version of torch, where Python lets it."""
    name = "use_recursive_dict_tags_for_guards"
    if not hasattr(torch._dynamo.config, name):
        yield
        return
    with torch._dynamo.config.patch({name: True}):
        yield


@pytest.fixture
def fresh_compiler() -> Generator[None, None, None]:
    """Have nothing that another test compiled, and leave nothing."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()
