"""What the owner learns from pytest-xdist; registered only when that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_ft2.owner import Owner

__all__ = ["WorkerHooks"]


class WorkerHooks:
    """Tells the owner which items the workers collected, and that one was interrupted."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self._owner.ids = list(ids)

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        # What Ctrl-C interrupts is reported as a crash of its worker, but no fault ended it.
        if error == "keyboard-interrupt":
            self._owner.interrupted = True
