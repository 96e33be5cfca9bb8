"""Word on which trials a campaign needs, for whoever runs them.

The process that decides the gate sees which trials have ended; once the first of them decide that
others are not needed, it leaves a note in a folder that the processes running trials look into. One
that cannot read it, on another machine, say, runs them all: that changes no verdict, which is that
of the trials that the first ones chose.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pytest_ft2.ledger import Ledger
from pytest_ft2.plan import GatePlan
from pytest_ft2.reports import payloads

__all__ = ["NeededTrials", "needed_trials"]

_FOLDER = pytest.StashKey[str]()
_INPUT = "ft2_needed"


def needed_trials(config: pytest.Config, plan: GatePlan) -> tuple[range, ...]:
    """Return the numbers of the trials that a campaign needs, as far as is known here and yet."""
    folder = config.stash.get(_FOLDER, None) or getattr(config, "workerinput", {}).get(_INPUT)
    note = None if folder is None else _note(Path(folder), plan.key)
    if note is None or not note.exists():
        return (plan.numbers,)
    return tuple(range(*each) for each in json.loads(note.read_text(encoding="ascii")))


class NeededTrials:
    """Leaves a note as soon as that is known of a campaign; registered with the owner."""

    def __init__(self, config: pytest.Config, ledger: Ledger) -> None:
        self._ledger = ledger
        self._folder = TemporaryDirectory(prefix="ft2-needed-")
        self._noted: set[str] = set()
        config.stash[_FOLDER] = self._folder.name

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_INPUT] = self._folder.name

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        heard = {payload["campaign"] for payload in payloads(report) if "campaign" in payload}
        for key in heard - self._noted:
            campaign = self._ledger.campaigns.get(key)
            needed = None if campaign is None else campaign.needed
            if needed is not None:
                note = _note(Path(self._folder.name), key)
                # Whoever looks sees all of it or nothing.
                written = note.with_suffix(".written")
                ends = [(each.start, each.stop) for each in needed]
                written.write_text(json.dumps(ends), encoding="ascii")
                written.replace(note)
                self._noted.add(key)


def _note(folder: Path, campaign: str) -> Path:
    return folder / blake2b(campaign.encode(), digest_size=16).hexdigest()
