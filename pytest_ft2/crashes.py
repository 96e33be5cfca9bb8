"""Trials and batches that ended their worker, told to whichever worker runs their chunk again.

A worker hears from the controller only when it starts, and one that runs already may get the chunk:
so the controller leaves notes in a folder, and sends word of the folder. A worker that cannot read
it, on another machine, say, runs the same again, and dies again.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

import pytest

__all__ = [
    "CRASHES",
    "RESTARTS",
    "batch_crashed",
    "crashed_trials",
    "leave_to_another_process",
    "note_crash",
]

CRASHES = "ft2_crashes"
"""Under this name a worker's input holds the folder."""

RESTARTS = "ft2_restarts"
"""Under this name it holds whether the controller replaces a worker that dies."""

_BATCH = "batch"


def leave_to_another_process(config: pytest.Config) -> None:
    """End this process in the running trial or batch, if another will run what is left.

    A device that a trial has made unusable is usable again for a new process. The trial counts as
    one that ended its process: a DUE. Of a batch nobody knows which trial it was: another process
    runs them one by one.
    """
    if getattr(config, "workerinput", {}).get(RESTARTS, False):
        os._exit(os.EX_SOFTWARE)


def note_crash(folder: Path, chunk_id: str, trial: int | None) -> None:
    """Note that a trial of a chunk, or (None) a batch of its trials, ended its worker."""
    with _notes(folder, chunk_id).open("a", encoding="ascii") as file:
        file.write(f"{_BATCH if trial is None else trial}\n")


def crashed_trials(config: pytest.Config, chunk_id: str) -> set[int]:
    """Return the trials of a chunk that ended a worker, in any process of this session."""
    return {int(line) for line in _noted(config, chunk_id) if line != _BATCH}


def batch_crashed(config: pytest.Config, chunk_id: str) -> bool:
    """Whether a batch of a chunk's trials ended a worker, in any process of this session."""
    return _BATCH in _noted(config, chunk_id)


def _noted(config: pytest.Config, chunk_id: str) -> list[str]:
    folder = getattr(config, "workerinput", {}).get(CRASHES)
    notes = None if folder is None else _notes(Path(folder), chunk_id)
    return notes.read_text(encoding="ascii").split() if notes is not None and notes.exists() else []


def _notes(folder: Path, chunk_id: str) -> Path:
    return folder / blake2b(chunk_id.encode(), digest_size=16).hexdigest()
