"""How fast a batch's rows attend, by how the second kernel's work is cut; on a GPU.

    python benchmarks/row_attention.py

Each row has so many columns of its own as a trial that goes on has at some time, and all read one
prefix but an eighth, which read their own. The bytes are those of what rows own.
"""

from __future__ import annotations

import argparse

import torch
from tabulate import tabulate
from torch import Tensor

from ft2.campaign import row_kernels

# Heads and their size.
SHAPES = {"Llama2-7B": (32, 128), "OPT-2.7B": (32, 80)}
# Columns in a portion, and warps.
CUTS = [(32, 4), (32, 1), (16, 1), (16, 2), (64, 2), (32, 2)]

_LAYERS = 32
_TIMES = 5


class Layers:
    """What the rows of a batch attend to, in a few layers."""

    def __init__(self, heads: int, size: int, rows: int, columns: int, prefix: int) -> None:
        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float16, device="cuda")

        def both(*shape: int) -> tuple[Tensor, Tensor]:
            return numbers(*shape), numbers(*shape)

        private = rows // 8
        self._query, self._new = numbers(rows, heads, 1, size), both(rows, heads, 1, size)
        self._prefixes = [
            (*both(count, heads, prefix, size), each)
            for count, each in ((1, rows - private), (private, 1))
        ]
        # Several, so that a layer's are not in the cache from the time before.
        self._own = [both(rows, heads, columns, size) for _ in range(4)]
        self._length = torch.arange(rows, device="cuda") % columns
        self._start = torch.zeros_like(self._length)
        self._stop = prefix - columns + self._length
        self._scaling = size**-0.5
        self.bytes = 4 * int(self._length.sum()) * heads * size

    def attend(self, layer: int) -> Tensor:
        return row_kernels.attend(
            self._query,
            self._new,
            self._prefixes,
            self._own[layer % 4],
            self._start,
            self._stop,
            self._length,
            self._scaling,
        )

    def milliseconds(self) -> float:
        """Return how long one layer takes, launched in a graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer in range(_LAYERS):
                self.attend(layer)
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(_TIMES):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / _TIMES / _LAYERS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--own", type=int, default=59)
    parser.add_argument("--prefix", type=int, default=160)
    arguments = parser.parse_args()
    table = []
    for name, (heads, size) in SHAPES.items():
        layers = Layers(heads, size, arguments.rows, arguments.own, arguments.prefix)
        first = layers.attend(0).float()
        for portion, warps in CUTS:
            row_kernels.OWN_COLUMNS, row_kernels.OWN_WARPS = portion, warps
            error = float((layers.attend(0).float() - first).norm() / first.norm())
            spent = layers.milliseconds()
            table.append([name, portion, warps, spent, layers.bytes / spent / 1e9, error])
    headers = ["", "columns", "warps", "ms a layer", "TB/s of own", "differs by"]
    print(tabulate(table, headers, floatfmt=".3g"))


if __name__ == "__main__":
    main()
