"""What the plugin itself costs a trial, beside the model and the test.

Run it from the project's root:

    python benchmarks/trial_overhead.py               # trials in batches
    python benchmarks/trial_overhead.py --batch 1     # one at a time

Two campaigns of different sizes run through pytest, each in a process of its own. Their difference
is what more trials cost; what a session costs once drops out.

batch
    Computing trials ahead, in ``ft2.campaign.Ahead``.
test
    The test's body: what ``generate`` does before and after decoding, the tokenizer, the assertion,
    and, one at a time, the model.
again, alone
    Trials that are run again to compare; the body's part is not in `test`.
plugin
    The rest: fixtures, attaching and detaching, drawing the fault, judging and reporting.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tabulate import tabulate

SUITE = "example_suites/quickstart"
SELECTED = "test_sum and llama"


class Stopwatch:
    """Adds up the processor's seconds in the parts of a campaign's chunks."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._is_again = False

    def pytest_configure(self) -> None:
        from ft2.campaign import Ahead
        from pytest_ft2.chunk import _ChunkRun

        self._time(Ahead, "compute", "batch")
        self._time(_ChunkRun, "_watch", "again, alone")
        self._time(_ChunkRun, "_run_trial", "trials")

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self) -> Generator[None, Any, Any]:
        started, before = time.process_time(), self.seconds["again, alone"]
        try:
            return (yield)
        finally:
            if not self._is_again and before == self.seconds["again, alone"]:
                self.seconds["test"] += time.process_time() - started

    def _time(self, owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            self._is_again = name == "_watch"
            try:
                return original(*args, **kwargs)
            finally:
                self._is_again = False
                self.seconds[part] += time.process_time() - started

        setattr(owner, name, timed)


def run_here(faults: int, batch: str | None) -> None:
    """Run a campaign in this process, and print where the time went."""
    import torch

    torch.set_num_threads(1)
    watch = Stopwatch()
    options = [] if batch is None else [f"--ft2-batch={batch}"]
    quiet = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:terminal")
    # One chunk: its golden runs are part of what a session costs once.
    campaign = (f"--ft2-faults={faults}", f"--ft2-chunk={faults}", "-k", SELECTED)
    pytest.main([*quiet, *campaign, *options, SUITE], plugins=[watch])
    print(json.dumps(watch.seconds))


def measure(faults: int, batch: str | None) -> dict[str, float]:
    """Return the seconds of a campaign's parts, in a process of its own."""
    command = [sys.executable, __file__, "--in-this-process", str(faults)]
    command += [] if batch is None else ["--batch", batch]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, nargs=2, default=(500, 2500), metavar="N")
    parser.add_argument("--batch", help="as --ft2-batch")
    parser.add_argument("--in-this-process", type=int, metavar="N", help=argparse.SUPPRESS)
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    if arguments.in_this_process:
        run_here(arguments.in_this_process, arguments.batch)
        return
    few, many = sorted(arguments.faults)
    small, large = measure(few, arguments.batch), measure(many, arguments.batch)
    per_trial = {
        part: 1000 * (seconds - small.get(part, 0.0)) / (many - few)
        for part, seconds in large.items()
    }
    per_trial["plugin"] = (
        per_trial["trials"] - per_trial["test"] - per_trial.get("again, alone", 0.0)
    )
    del per_trial["trials"]
    rows = [[part, f"{milliseconds:.2f}"] for part, milliseconds in per_trial.items()]
    print(tabulate(rows, ["", "ms per trial"]))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(per_trial, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
