"""What do the detectors of wrong outputs see, and do they ever cry wolf?

Rows of random prompts decode as one batch, greedily. First without any fault: a row's step in which
a check flags it is a false alarm. Then with one bit flipped in every row, on its second token, of
one number that a random projection puts out: the share of rows that is flagged, for each bit.

Checks: ``bounds``, learned on each row's first token and widened twice, on the critical layers;
``checksums`` of whole projections; ``sums of G`` columns, for each ``--groups``.

Run it from the project's root: ``python benchmarks/detection.py [--steps N] [--model FOLDER]``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import AutoModelForCausalLM

import ft2
from ft2 import native
from ft2.faults.formats import format_of
from ft2.forward import Clock, Forward, Listener, Order, attach, by_row, tap_in_lane
from ft2.layers import Projection
from ft2.native import OUTSIDE_BOUNDS, WRONG_SUM
from ft2.protection.arithmetic import widen
from ft2.protection.detection import BoundsCheck, Check, ChecksumCheck, DetectionLane

QUICKSTART = Path(__file__).resolve().parent.parent / "example_suites/quickstart/models/llama"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PROMPT, NEW_TOKENS = 8, 33


class Watch(Listener):
    """Flips bits in the rows of a batch, and notes which rows each check flags."""

    def __init__(self, model: Any, rows: int, groups: list[int]) -> None:
        self._rows = rows
        layers = ft2.projections(model)
        critical = [each for each in layers if each.critical]
        self._layers = [each.name for each in layers]
        self._extremes = torch.tensor([[torch.inf], [-torch.inf]]).repeat(len(critical), 1, rows)
        modules = [model.get_submodule(each.name) for each in layers]
        self._bounds = BoundsCheck(self._extremes.clone(), _flags(rows))
        sums = {"checksums": 0} | {f"sums of {group}": group for group in groups}
        self.checks: dict[str, Any] = {"bounds": self._bounds} | {
            name: ChecksumCheck(modules, _flags(rows), group) for name, group in sums.items()
        }
        self.flip: tuple[Tensor, Tensor, Tensor] | None = None
        self.flagged = {name: torch.zeros(0, dtype=torch.bool) for name in self.checks}
        self._clock = Clock.listen(model, self)
        self._learning = True
        self._widths = torch.tensor([each.out_features for each in layers])
        self._lanes = [
            self._lane(model, critical, [self._bounds]),
            self._lane(model, layers, [self.checks[name] for name in sums]),
        ]
        places = {each.name: place for place, each in enumerate(critical)}
        attach(model, layers, Order.INJECT, lambda each: self._strike(each, places), _no_experts)

    def draw(self, bit: int, generator: torch.Generator) -> None:
        """Choose a projection and a neuron for every row, whose bit is flipped in each step."""
        layer = torch.randint(len(self._layers), (self._rows,), generator=generator)
        part = torch.rand(self._rows, generator=generator)
        neuron = (part * self._widths[layer]).long()
        self.flip = layer, neuron, torch.tensor(bit)

    def forward_started(self, forward: Forward) -> None:
        self._learning = forward.is_first_token
        if self._learning:
            self._extremes[:, 0], self._extremes[:, 1] = torch.inf, -torch.inf
        else:
            low, high = (each.flatten() for each in (self._extremes[:, 0], self._extremes[:, 1]))
            both = widen(low, high, 2.0, torch.float32, len(low))
            shape = (len(self._extremes), self._rows)
            self._bounds.bounds.copy_(torch.stack([each.view(shape) for each in both], 1))
            for lane in self._lanes:
                lane.begin()

    def forward_finished(self, forward: Forward, output: Any) -> None:
        for name, check in self.checks.items():
            assert not (check.flags & ~(OUTSIDE_BOUNDS | WRONG_SUM)).any()
            self.flagged[name] = check.flags.bool()
            check.flags = torch.zeros_like(check.flags)

    def _lane(self, model: Any, layers: list[Projection], checks: list[Check]) -> DetectionLane:
        lane = DetectionLane(checks)
        tap_in_lane(model, [each.name for each in layers], lane, self._clock.lanes)
        return lane

    def _strike(self, projection: Projection, places: dict[str, int]) -> Any:
        number, place = self._layers.index(projection.name), places.get(projection.name)

        def strike(output: Tensor) -> Tensor:
            view = by_row(output, self._clock.forward)
            if self._learning:
                if place is not None:
                    flat = view.float().reshape(self._rows, -1)
                    self._extremes[place, 0] = flat.amin(1)
                    self._extremes[place, 1] = flat.amax(1)
                return output
            if self.flip is None:
                return output
            layer, neuron, bit = self.flip
            rows = (layer == number).nonzero()[:, 0]
            struck = output.clone()
            patterns = by_row(struck, self._clock.forward).view(
                format_of(output.dtype).pattern_dtype
            )
            one = torch.ones((), dtype=patterns.dtype)
            patterns[rows, 0, neuron[rows]] ^= one << bit
            return struck

        return strike


def _no_experts(group: list[Projection]) -> Any:
    raise SystemExit(f"{group[0].name} is an expert: use a model without experts")


def _flags(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.uint8)


@torch.inference_mode()
def decode(model: Any, watch: Watch, prompts: Tensor, steps: int) -> dict[str, int]:
    """Return how many of the rows' `steps` after the first token each check flagged."""
    found = dict.fromkeys(watch.checks, 0)
    output = model(prompts, use_cache=True)
    ids = output.logits[:, -1:].argmax(-1)
    for _ in range(steps):
        output = model(ids, past_key_values=output.past_key_values)
        ids = output.logits[:, -1:].argmax(-1)
        for name, flagged in watch.flagged.items():
            found[name] += int(flagged.sum())
    return found


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    dtype = DTYPES[name]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(arguments.seed)
    watch = Watch(model, arguments.rows, arguments.groups)

    def prompts() -> Tensor:
        shape = (arguments.rows, PROMPT)
        return torch.randint(1, model.config.vocab_size, shape, generator=generator)

    steps_a_batch = arguments.rows * (NEW_TOKENS - 1)
    batches = -(-arguments.steps // steps_a_batch)
    alarms = dict.fromkeys(watch.checks, 0)
    for _ in range(batches):
        for check, count in decode(model, watch, prompts(), NEW_TOKENS - 1).items():
            alarms[check] += count
    seen: list[dict[str, float]] = []
    for bit in range(format_of(dtype).width):
        found = dict.fromkeys(watch.checks, 0)
        for _ in range(arguments.repetitions):
            watch.draw(bit, generator)
            for check, count in decode(model, watch, prompts(), 1).items():
                found[check] += count
        total = arguments.rows * arguments.repetitions
        seen.append({check: 100 * count / total for check, count in found.items()})
    return {"steps": batches * steps_a_batch, "false alarms": alarms, "detected, %": seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=QUICKSTART, help="folder of a saved model")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--groups", nargs="+", type=int, default=[16])
    parser.add_argument("--steps", type=int, default=100_000, help="fault-free ones of each dtype")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=8, help="batches of faults for each bit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not native.load().cpu.active:
        raise SystemExit(f"the checks are native operations: {native.load().cpu.detail}")
    results = {name: measure(arguments, name) for name in arguments.dtypes}
    for name, result in results.items():
        print(
            f"\n{name}: {result['steps']} fault-free steps; false alarms {result['false alarms']}"
        )
        rows = [(bit, *each.values()) for bit, each in enumerate(result["detected, %"])]
        headers = ("bit", *(f"{check}, %" for check in result["false alarms"]))
        print(tabulate(rows[::-1], headers, floatfmt=".1f"))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
