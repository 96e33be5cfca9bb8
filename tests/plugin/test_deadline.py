"""What becomes of a trial that does not come back to the interpreter, and of those behind it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_TRIALS = """
import time
from types import SimpleNamespace
from pytest_ft2 import deadline

deadline._GRACE_SECONDS = 1.0
config = SimpleNamespace()

def trial(seconds=0.0):
    with deadline.Deadline(1.0, config):
        time.sleep(seconds)

def hang():
    with deadline.Deadline(1.0, config):
        sum(range(10**12))  # It asks for no signal on the way.
"""


def _run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _TRIALS + body], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "body",
    [
        "hang()",
        "with deadline.last_resort():\n    hang()",
        "with deadline.last_resort():\n    for _ in range(50): trial()\n    hang()",
    ],
    ids=["alone", "first of many", "behind others"],
)
def test_a_trial_that_does_not_come_back_ends_the_process_with_a_traceback(body: str) -> None:
    result = _run(body + "\nprint('came back')")
    assert result.returncode == 1
    assert "Timeout" in result.stderr
    assert "in hang" in result.stderr
    assert "came back" not in result.stdout


@pytest.mark.parametrize(
    "body",
    [
        "trial(); time.sleep(3)",
        "with deadline.last_resort():\n    trial()\ntime.sleep(5)",
        "with deadline.last_resort():\n    for _ in range(6): trial(0.9)",
    ],
    ids=["after one", "after many", "many in a row"],
)
def test_only_the_time_of_a_trial_is_limited(body: str) -> None:
    result = _run(body + "\nprint('came back')")
    assert "came back" in result.stdout, result.stderr
    assert result.returncode == 0


def test_a_time_that_is_up_before_a_trial_has_begun_never_ends_the_session() -> None:
    result = _run(
        "for _ in range(200):\n"
        "    with deadline.Deadline(1e-6, config): time.sleep(0.0001)\n"
        "print('came back')"
    )
    assert "came back" in result.stdout, result.stderr
