"""Where the time of a batch's forwards goes: kernels, launches, copies, and the host's work."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, schedule

from ft2.campaign.row_batch import RowBatch

__all__ = ["Window", "floors", "watch_forwards"]

_WARM_UP = 2
_ACTIVE = 4
_SHOWN = 20
_NAME = 90


@dataclass(eq=False)
class Window:
    """A few forwards that follow each other, as the profiler saw them; numbers are per forward.

    Attributes
    ----------
    first:
        Which forward was the first, counted from where the watching began.
    milliseconds:
        Wall time, the profiler's own part in it included.
    kernels:
        Milliseconds and number of each kernel.
    copies:
        Number and bytes of each kind of copy and of setting memory.
    runtime:
        Milliseconds and number of each call of the CUDA runtime.
    tables:
        What the profiler itself says, by operation.
    """

    first: int
    milliseconds: float
    kernels: dict[str, tuple[float, float]] = field(default_factory=dict)
    copies: dict[str, tuple[float, float]] = field(default_factory=dict)
    runtime: dict[str, tuple[float, float]] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    def show(self) -> None:
        """Print it."""
        busy = sum(spent for spent, _ in self.kernels.values())
        launches = sum(count for _, count in self.kernels.values())
        print(
            f"\nforwards {self.first} to {self.first + _ACTIVE - 1}, per forward: "
            f"{self.milliseconds:.2f} ms by the clock, {busy:.2f} ms in {launches:.0f} kernels"
        )
        rows = [(name[:_NAME], *each) for name, each in _largest(self.kernels)]
        print(tabulate(rows, ["kernel", "ms", "number"], floatfmt=".3f"))
        copies = [(name, count, size / 2**20) for name, (count, size) in self.copies.items()]
        print(tabulate(copies, ["copy", "number", "MiB"], floatfmt=".2f"))
        rows = [(name, *each) for name, each in _largest(self.runtime)[:8]]
        print(tabulate(rows, ["runtime call", "ms", "number"], floatfmt=".3f"))
        for name, table in self.tables.items():
            print(f"\n{name}, of all {_ACTIVE} forwards\n{table}")

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it but the tables, for JSON."""
        return {
            "first": self.first,
            "milliseconds": self.milliseconds,
            "kernels": self.kernels,
            "copies": self.copies,
            "runtime": self.runtime,
        }


def _largest(times: dict[str, tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    return sorted(times.items(), key=lambda item: -item[1][0])[:_SHOWN]


@contextmanager
def watch_forwards(before: int, windows: int, device: str) -> Generator[list[Window], None, None]:
    """Profile some decode forwards of batches; yields a list that the windows are put into.

    Parameters
    ----------
    before:
        How many forwards go by before each window.
    windows:
        How many windows.
    """
    found: list[Window] = []
    # When each forward ended.
    times: list[float] = []

    def read(profiler: Any) -> None:
        last = len(times)
        first = last - _ACTIVE
        window = Window(first, 1000 * (times[-1] - times[first - 1]) / _ACTIVE)
        _read_trace(profiler, window)
        by = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
        for name, key, shapes in (
            ("operations by the host's time", "self_cpu_time_total", False),
            ("operations by their kernels' time, with the shapes of what they are given", by, True),
        ):
            averages = profiler.key_averages(group_by_input_shape=shapes)
            window.tables[name] = averages.table(
                sort_by=key, row_limit=_SHOWN, max_name_column_width=40, max_shapes_column_width=70
            )
        found.append(window)

    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=before - _WARM_UP, warmup=_WARM_UP, active=_ACTIVE, repeat=windows)
    with profile(
        activities=activities, schedule=plan, on_trace_ready=read, record_shapes=True
    ) as profiler:
        advance = RowBatch.advance

        # A hook of the model would not hear of forwards that are replayed.
        def step(self: RowBatch) -> list[int]:
            ended = advance(self)
            times.append(time.perf_counter())
            profiler.step()
            return ended

        RowBatch.advance = step  # type: ignore[method-assign]
        try:
            yield found
        finally:
            RowBatch.advance = advance  # type: ignore[method-assign]


def _read_trace(profiler: Any, window: Window) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    spent: dict[str, Counter[str]] = {}
    number: dict[str, Counter[str]] = {}
    for event in events:
        kind, name = event.get("cat"), event.get("name", "")
        duration = event.get("dur", 0) / 1000 / _ACTIVE
        if kind in ("gpu_memcpy", "gpu_memset"):
            duration = event.get("args", {}).get("bytes", 0) / _ACTIVE
        spent.setdefault(kind, Counter())[name] += duration
        number.setdefault(kind, Counter())[name] += 1
    for kinds, there, is_number_first in (
        (("kernel",), window.kernels, False),
        (("cuda_runtime", "cuda_driver"), window.runtime, False),
        (("gpu_memcpy", "gpu_memset"), window.copies, True),
    ):
        for kind in kinds:
            for name, total in spent.get(kind, {}).items():
                count = number[kind][name] / _ACTIVE
                there[name] = (count, total) if is_number_first else (total, count)


def floors(model: nn.Module, rows: int, kept: int) -> list[tuple[str, float]]:
    """Measure what a forward cannot do without, in milliseconds.

    Parameters
    ----------
    rows:
        Of the batch.
    kept:
        How many bytes of keys and values a forward reads.
    """
    weights = [each.weight for each in model.modules() if isinstance(each, nn.Linear)]
    first = weights[0]
    inputs = {
        size: torch.randn(rows, size, dtype=first.dtype, device=first.device)
        for size in {weight.shape[1] for weight in weights}
    }

    def multiply() -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    source = torch.empty(min(kept, 2**32) // 2, dtype=torch.uint8, device=first.device)
    target = torch.empty_like(source)
    # A copy reads and writes.
    share = kept / max(2 * source.numel(), 1)

    def copy() -> None:
        target.copy_(source)

    return [
        (f"all {len(weights)} matrix products of {rows} rows", _median(multiply, first)),
        (f"reading {kept / 2**30:.2f} GiB, as fast as copying", share * _median(copy, first)),
    ]


def _median(compute: Callable[[], None], like: Tensor) -> float:
    times = []
    for _ in range(8):
        started = time.perf_counter()
        compute()
        if like.is_cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times[2:])[len(times[2:]) // 2]
