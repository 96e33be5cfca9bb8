"""What the native operation costs: against ``nan_to_num`` and ``clamp``, and against copying.

Run it from the project's root: ``python benchmarks/op.py [--json FILE]``. Variants are interleaved
in one process and compared as medians; on CUDA a call's time is that of many, launched back to
back. Nothing is out of bounds, as in nearly all calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ft2 import native

SIZES = {"decode, 4096": (1, 1, 4096), "prefill, 512x4096": (1, 512, 4096)}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LIMIT = 8.0
IN_PLACE = "nan_to_num_, clamp_"
COPY = "memcpy"
# Seconds that one sample takes, about.
SAMPLE = 0.002


@dataclass
class Row:
    """The medians of one size, in microseconds a call."""

    device: str
    size: str
    dtype: str
    microseconds: dict[str, float]

    def ratio(self, variant: str, base: str) -> float:
        """How long a variant takes in units of another."""
        return self.microseconds[variant] / self.microseconds[base]


def _variants(values: Tensor, operations: native.Operations) -> dict[str, Callable[[], object]]:
    bounds = torch.tensor([[-LIMIT], [LIMIT]], device=values.device)
    low, high = (bound.view(1, 1, 1) for bound in bounds)
    corrected = torch.zeros(1, dtype=torch.int64, device=values.device)
    copy = torch.empty_like(values)
    restrict, record = operations.restrict_, operations.record_
    overload = torch.ops.ft2.restrict_.default
    return {
        "restrict_": lambda: restrict(values, bounds, corrected),
        "restrict_ as OpOverload": lambda: overload(values, bounds, corrected),
        "record_": lambda: record(values, bounds, corrected),
        IN_PLACE: lambda: values.nan_to_num_(0.0).clamp_(-LIMIT, LIMIT),
        "nan_to_num, clamp": lambda: values.nan_to_num(0.0).clamp(-LIMIT, LIMIT),
        "same, bounds as tensors": lambda: values.nan_to_num(0.0).clamp(low, high),
        COPY: lambda: copy.copy_(values),
    }


def _seconds(variant: Callable[[], object], calls: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        variant()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / calls


def _measure(device: torch.device, operations: native.Operations, repetitions: int) -> list[Row]:
    rows = []
    for size, shape in SIZES.items():
        for dtype in DTYPES:
            generator = torch.Generator().manual_seed(0)
            values = torch.randn(shape, generator=generator).to(device, dtype)
            variants = _variants(values, operations)
            calls = {
                name: max(1, int(SAMPLE / min(_seconds(variant, 5, device) for _ in range(5))))
                for name, variant in variants.items()
            }
            samples: dict[str, list[float]] = {name: [] for name in variants}
            for _ in range(repetitions):
                for name, variant in variants.items():
                    samples[name].append(_seconds(variant, calls[name], device))
            medians = {name: 1e6 * statistics.median(each) for name, each in samples.items()}
            rows.append(Row(device.type, size, str(dtype).removeprefix("torch."), medians))
    return rows


def _print(rows: list[Row]) -> None:
    head = f"{'device':7}{'size':19}{'type':10}{'variant':26}"
    print(f"{head}{'µs':>9}{'of in place':>13}{'of memcpy':>11}")
    for row in rows:
        for name, microseconds in row.microseconds.items():
            print(
                f"{row.device:7}{row.size:19}{row.dtype:10}{name:26}{microseconds:9.2f}"
                f"{row.ratio(name, IN_PLACE):13.2f}{row.ratio(name, COPY):11.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=101)
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    status, operations = native.load(), native.operations()
    if operations is None:
        raise SystemExit(f"no native operations: {status.cpu.detail}")
    devices = [torch.device("cpu")]
    if torch.cuda.is_available() and status.cuda.active:
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    rows = [
        row for device in devices for row in _measure(device, operations, arguments.repetitions)
    ]
    _print(rows)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file)


if __name__ == "__main__":
    main()
