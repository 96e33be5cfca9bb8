"""The files that a session leaves: its JSON document, and the page of a GitHub job."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ft2.report import CampaignResult, markdown_page, write_document

__all__ = ["Files"]


class Files:
    """Writes them when all is known; one that cannot be written takes nothing else with it.

    Attributes
    ----------
    unwritten:
        A sentence on each file that could not be written.
    """

    def __init__(self, json: Path | None) -> None:
        self._json = json
        self.unwritten: list[str] = []

    def make_way(self) -> None:
        """Remove an older run's document, and see that a new one can be written in its place.

        Whatever ends this process early must not leave an older run's verdicts behind.

        Raises
        ------
        pytest.UsageError
            If it cannot; the message is one sentence.
        """
        path = self._json
        if path is None:
            return
        try:
            if path.exists() and not path.is_file():
                # A pipe, say, is not ours to remove.
                return
            # In a folder that is not ours a file may be, which cannot be removed.
            with suppress(OSError):
                path.unlink()
            path.open("w").close()
            with suppress(OSError):
                path.unlink()
        except OSError as error:
            raise pytest.UsageError(
                f"--ft2-json: {path} cannot be written ({error.strerror}): name a file that can be"
            ) from None

    def write(self, results: Sequence[CampaignResult], environment: Mapping[str, Any]) -> None:
        """Write what is asked for, as far as that can be done."""
        if self._json is not None:
            with self._told("--ft2-json", self._json):
                write_document(self._json, results, environment)
        page = os.environ.get("GITHUB_STEP_SUMMARY")
        if page and results:
            with self._told("GITHUB_STEP_SUMMARY", page), open(page, "a", encoding="utf-8") as file:
                file.write(markdown_page(results))

    @contextmanager
    def _told(self, who: str, path: object) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            self.unwritten.append(
                f"{who}: {path} could not be written ({error.strerror}), so what was found stands "
                "here alone."
            )
