"""Word that a campaign needs no more trials, for whoever runs them.

The process that decides the gate sees which trials have ended; it leaves a note in a folder that
the processes running trials look into. One that cannot read it, on another machine, say, runs them
all: that changes no verdict, which is that of the first trials in their order.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pytest_ft2.ledger import Ledger
from pytest_ft2.reports import payloads

__all__ = ["EarlyStops", "is_stopped"]

_FOLDER = pytest.StashKey[str]()
_INPUT = "ft2_stops"


def is_stopped(config: pytest.Config, campaign: str) -> bool:
    """Whether the trials that a campaign has yet to run are not needed."""
    folder = config.stash.get(_FOLDER, None) or getattr(config, "workerinput", {}).get(_INPUT)
    return folder is not None and _note(Path(folder), campaign).exists()


class EarlyStops:
    """Leaves a note as soon as a campaign's first trials decide it; registered with the owner."""

    def __init__(self, config: pytest.Config, ledger: Ledger) -> None:
        self._ledger = ledger
        self._folder = TemporaryDirectory(prefix="ft2-stops-")
        config.stash[_FOLDER] = self._folder.name

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_INPUT] = self._folder.name

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key in {payload["campaign"] for payload in payloads(report) if "campaign" in payload}:
            campaign = self._ledger.campaigns.get(key)
            if campaign is not None and campaign.stopped_after is not None:
                _note(Path(self._folder.name), key).touch()


def _note(folder: Path, campaign: str) -> Path:
    return folder / blake2b(campaign.encode(), digest_size=16).hexdigest()
