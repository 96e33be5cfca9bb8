"""What the plugin itself costs a trial, beside the model, the test and pytest.

Run it from the project's root:

    python benchmarks/trial_overhead.py               # trials in batches
    python benchmarks/trial_overhead.py --batch 1     # one at a time

Campaigns of two sizes run through pytest, each in a process of its own. Between a campaign's
trials, the same items run as plain tests: by pytest's own protocol, with none of the plugin's
hooks. Decoding is then left out: ``generate`` is told what it decoded before. What a session costs
once drops out: parts that it belongs to are the difference of the two sizes.

pytest
    Setup, call and teardown of a plain test, and the making of their reports; without its body.
test
    The body of a plain test without decoding: the tokenizer, the assertion, and all that
    ``generate`` does before and after.
batch
    Computing trials ahead, in ``ft2.campaign.Ahead``; what a campaign's first trial costs more, its
    golden runs, is left out.
decoding
    What trials decode in their tests: all of them one at a time, in batches those whose test asks
    for something else.
again, alone
    Trials that are run again to compare.
plugin, in the test
    What the body takes longer in a trial than in a plain test, decoding apart: seeing what
    ``generate`` is asked, comparing it, and answering.
plugin, around the test
    What a trial takes longer than that: attaching and detaching, drawing the fault, setting random
    states, judging, reporting, and the session's work at its end.

All is processor time, so neighbours on the machine count only as far as they empty its caches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from tabulate import tabulate

SUITE = "example_suites/quickstart"
SELECTED = "test_sum and llama"
HOOKS = ("ft2-golden-items", "ft2-sighting")
MARK = 1.0


class Stopwatch:
    """Adds up the processor's seconds in the parts of a session; each counts in one part alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.plain_runs = 0
        self.trials = 0
        self.batched = 0
        self._parts: list[str] = ["session"]
        self._since = time.process_time()
        self._is_plain = False
        self._decoded: dict[bytes, Any] = {}

    @contextmanager
    def part(self, name: str) -> Generator[None, None, None]:
        """Count what runs inside to `name`, and not to the part around it."""
        self._switch()
        # What is run again is one part, whatever is in it.
        self._parts.append("again, alone" if self._parts[-1] == "again, alone" else name)
        try:
            yield
        finally:
            self._switch()
            self._parts.pop()

    def stop(self) -> None:
        self._switch()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def pytest_configure(self) -> None:
        from transformers.generation import GenerationMixin

        import pytest_ft2.chunk
        import pytest_ft2.goldens
        import pytest_ft2.oracle
        from ft2.campaign import Ahead

        chunk_run = pytest_ft2.chunk._ChunkRun
        self._time(Ahead, "compute", "batch")
        self._time(chunk_run, "_compute_ahead", "trials")
        self._time(chunk_run, "_watch", "again, alone")
        self._time(pytest_ft2.goldens.GoldenRunner, "again", "session")
        self._time(pytest_ft2.oracle.Oracle, "check_again", "session")
        self._count(chunk_run)
        self._decode(GenerationMixin)

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self) -> None:
        # Collecting all garbage takes pytest longer than all else that follows the trials.
        self._switch()
        self._parts = ["left"]

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self) -> Generator[None, Any, Any]:
        with self.part("plain test" if self._is_plain else self._in_trial("test")):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.batched += sum(each.get("batch", 1) > 1 for each in getattr(report, "ft2", ()))

    def _in_trial(self, part: str) -> str:
        return part if "trials" in self._parts else "session"

    def _time(self, owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return original(*args, **kwargs)

        setattr(owner, name, timed)

    def _count(self, owner: Any) -> None:
        original: Callable[..., None] = owner._run_trial
        whole: Callable[..., None] = owner.run

        def run(run: Any, *, is_last: bool) -> None:
            whole(run, is_last=is_last)
            self._switch()
            self._parts = ["end"]

        def run_trial(run: Any, trial: int, number: int) -> None:
            if self._parts == ["session"]:
                # From the first trial on, all around them belongs to them.
                self._switch()
                self._parts = ["trials"]
            original(run, trial, number)
            self.trials += 1
            if self.trials % 50 == 0:
                with self.part("between"):
                    self._run_plainly(run.campaign.sets, run.chunk)

        owner.run, owner._run_trial = run, run_trial

    def _run_plainly(self, items: list[pytest.Function], neighbour: pytest.Item) -> None:
        plugins = neighbour.config.pluginmanager
        ours = {name: plugins.unregister(name=name) for name in HOOKS}
        self._is_plain = True
        for number in range(50):
            with self.part("pytest"):
                reports = runtestprotocol(items[number % len(items)], log=False, nextitem=neighbour)
            assert all(report.passed for report in reports)
            self.plain_runs += 1
        self._is_plain = False
        for name, plugin in ours.items():
            plugins.register(plugin, name)

    def _decode(self, owner: Any) -> None:
        original = owner._sample

        def _sample(model: Any, input_ids: Any, *args: Any, **given: Any) -> Any:
            asked = input_ids.numpy().tobytes()
            if self._is_plain and asked in self._decoded:
                return self._decoded[asked].clone()
            with self.part("plain decoding" if self._is_plain else self._in_trial("decoding")):
                said = original(model, input_ids, *args, **given)
            if self._is_plain:
                self._decoded[asked] = said.clone()
            return said

        # Every model inherits it, so none seems to decode in a way of its own.
        owner._sample = _sample


def run_here(faults: int, batch: str | None) -> None:
    """Run a campaign in this process, and print where the time went."""
    import torch

    torch.set_num_threads(1)
    watch = Stopwatch()
    options = [] if batch is None else [f"--ft2-batch={batch}"]
    # One chunk: its golden runs are part of what a session costs once.
    campaign = (f"--ft2-faults={faults}", f"--ft2-chunk={faults}", "-k", SELECTED)
    plugins = ("-p", "pytest_ft2.plugin", "-p", "no:cacheprovider")
    pytest.main([*plugins, *campaign, *options, SUITE], plugins=[watch])
    watch.stop()
    counts = {"trials": watch.trials, "plain": watch.plain_runs, "batched": watch.batched}
    counts["decoded plainly"] = len(watch._decoded)
    print(json.dumps([watch.seconds, counts]))


def measure(faults: int, batch: str | None) -> tuple[dict[str, float], dict[str, int]]:
    """Return the seconds of a campaign's parts and what ran, in a process of its own."""
    command = [sys.executable, __file__, "--in-this-process", str(faults)]
    command += [] if batch is None else ["--batch", batch]
    # Other plugins that happen to be installed would add what they cost.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: tuple[dict[str, float], dict[str, int]] = json.loads(ended.stdout.splitlines()[-1])
    seconds, counts = found
    if counts["trials"] != faults or (batch is None and counts["batched"] != faults):
        raise SystemExit(f"of {faults} trials {counts['batched']} ran in batches:\n{ended.stdout}")
    return seconds, counts


def per_trial(few: int, many: int, batch: str | None) -> dict[str, float]:
    """Return the milliseconds of each part."""
    small, _ = measure(few, batch)
    large, counts = measure(many, batch)

    def each(part: str, runs: str = "trials") -> float:
        return 1000 * large.get(part, 0.0) / max(counts[runs], 1)

    def more(part: str) -> float:
        return 1000 * (large.get(part, 0.0) - small.get(part, 0.0)) / (many - few)

    return {
        "pytest": each("pytest", "plain"),
        "test": each("plain test", "plain"),
        "plain decoding": each("plain decoding", "decoded plainly"),
        "batch": more("batch"),
        "decoding": each("decoding"),
        "again, alone": each("again, alone"),
        "plugin, in the test": each("test") - each("plain test", "plain"),
        "plugin, around the test": each("trials") - each("pytest", "plain") + more("end"),
    }


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
    found = per_trial(few, many, arguments.batch)
    plain_decoding = found.pop("plain decoding")
    plain_test = found["pytest"] + found["test"] + plain_decoding
    trial = sum(found.values())
    plugin = found["plugin, in the test"] + found["plugin, around the test"]
    rows = [[part, f"{ms:.2f}", f"{ms / plain_test:.2f}"] for part, ms in found.items()]
    rows.append(["a trial", f"{trial:.2f}", f"{trial / plain_test:.2f}"])
    rows.append(["of that, the plugin", f"{plugin:.2f}", f"{plugin / plain_test:.2f}"])
    rows.append(["the plain test, decoding", f"{plain_test:.2f}", "1"])
    print(tabulate(rows, ["", "ms per trial", "of the plain test"], disable_numparse=True))
    print(f"The mark, {MARK:g} ms for the plugin, is {'met' if plugin <= MARK else 'not met'}.")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
