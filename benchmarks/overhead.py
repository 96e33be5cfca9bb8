"""What protection and detection cost a model that generates: ratios to the model alone.

Run it from the project's root: ``python benchmarks/overhead.py [--device cuda] [--compiled]``. The
variants of a model are module objects of their own over the same weights, each with its protection
attached once. In one process they take turns of a few tokens, in an order that is drawn anew each
time, and each token is given what ``generate`` gives it, and waited for. Weights are random, since
time does not depend on them. A variant's time is its median first token plus its median later token
times their number. The interval is of the ratio of later tokens' medians, by resampling turns: it
tells how far the machine's unrest moves it. Beside it stand the ratios of first deciles, where a
shared machine was quiet: of later tokens, and of a first one and the later ones. Each model has a
process: all are built and compiled at once, then measured one after the other on each device.

alone
    The model as it is.
again
    The same once more: what it differs by is the machine's unrest.
paper
    The paper's way: a forward hook on each critical layer, clamp with tensor bounds, nan_to_num.
ft2
    ``ft2.protect(model)``.
bounds
    Detection alone: the critical layers' outputs are kept, and one launch a step checks them all
    against their bounds.
checksums
    Detection alone: the outputs and inputs of every projection are kept, and one launch a step
    checks the column sums of all of them.
recompute
    ``ft2.protect(model, "ft2-recompute")``: that, what is kept so that a step could be undone, and
    what tells whether it must be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from decoding import Decoder, Moment
from models import build, twin
from numpy.typing import NDArray
from shapes import NARROW, PROMPT, SHAPES
from tabulate import tabulate
from torch import Tensor, nn

import ft2
from ft2 import native
from ft2.forward import Clock, Forward, Listener, sparable, tap_in_lane
from ft2.protection.detection import BoundsCheck, Check, ChecksumCheck, DetectionLane

_ALL = {**SHAPES, **NARROW}
# Measured before the turns, which have one of each request.
_FIRST_TOKENS = 12
# What each variant took, turn by turn.
Turns = dict[str, list[list[Moment]]]


def _critical(model: nn.Module) -> list[ft2.Projection]:
    return [each for each in ft2.projections(model) if each.critical]


def _alone(model: Any) -> None:
    del model


def _recompute(model: Any) -> None:
    ft2.protect(model, "ft2-recompute")


def _paper(model: Any) -> None:
    for projection in _critical(model):
        module = model.get_submodule(projection.name)
        limit = torch.tensor(6e4, dtype=module.weight.dtype, device=module.weight.device)

        def clip(module: nn.Module, args: Any, output: Tensor, limit: Tensor = limit) -> Tensor:
            return torch.nan_to_num(torch.clamp(output, -limit, limit))

        module.register_forward_hook(clip)


def _ft2(model: Any) -> None:
    ft2.protect(model)


class _Detecting(Listener):
    """Has a model's layers checked at the end of each forward."""

    def __init__(self, model: Any, layers: list[ft2.Projection], check: Check, later: bool) -> None:
        self._lane = DetectionLane([check])
        self._later = later
        clock = Clock.listen(model, self)
        names = [each.name for each in layers]
        tap_in_lane(model, names, self._lane, clock.lanes, sparable(model, names))

    def forward_repeats(self, forward: Forward) -> Callable[[], None]:
        return self._lane.repeating(forward.rows)

    def forward_started(self, forward: Forward) -> None:
        if not (self._later and forward.is_first_token):
            self._lane.begin(None, forward.rows * forward.tokens)


def _bounds(model: Any) -> None:
    layers = _critical(model)
    limits = torch.full((len(layers), 2, 1), 6e4, device=model.device)
    limits[:, 0] *= -1
    flags = torch.zeros(1, dtype=torch.uint8, device=model.device)
    _Detecting(model, layers, BoundsCheck(limits, flags), later=True)


def _checksums(model: Any) -> None:
    layers = ft2.projections(model)
    modules = [model.get_submodule(each.name) for each in layers]
    flags = torch.zeros(1, dtype=torch.uint8, device=model.device)
    _Detecting(model, layers, ChecksumCheck(modules, flags), later=False)


VARIANTS: dict[str, Callable[[Any], None]] = {
    "alone": _alone,
    "again": _alone,
    "paper": _paper,
    "ft2": _ft2,
    "bounds": _bounds,
    "checksums": _checksums,
    "recompute": _recompute,
}


_FAILED = object()


class _Contest:
    """The variants of one model, taking turns.

    Parameters
    ----------
    model:
        The model.
    arguments:
        The command line's.
    batch, new_tokens:
        Rows of a request, and tokens that are computed for each.
    """

    def __init__(
        self, model: Any, arguments: argparse.Namespace, batch: int, new_tokens: int
    ) -> None:
        self._arguments = arguments
        self._draw = random.Random(0)
        prompt = torch.randint(5, 500, (batch, PROMPT), device=model.device)
        self._decoders = {}
        for name in arguments.variants:
            other = twin(model)
            VARIANTS[name](other)
            settings = (new_tokens, arguments.compiled, name not in ("alone", "again", "paper"))
            self._decoders[name] = Decoder(other, prompt, *settings)
        # What is compiled, or captured, is so within the first request.
        self._warm_up = new_tokens + 2 if arguments.compiled else 2 * arguments.turn

    def warm_up(self) -> None:
        # One after the other: compiled by turns, the first was 2 % faster than the same once more.
        for decoder in self._decoders.values():
            for _ in range(self._warm_up):
                decoder.decode()

    def measure(self) -> Turns:
        turns: Turns = {name: [] for name in self._decoders}
        for _ in range(_FIRST_TOKENS):
            for name in self._drawn():
                self._decoders[name].start_over()
                turns[name].append([self._decoders[name].decode()])
        for name, taken in self._take_turns(self._arguments.turns).items():
            turns[name] += taken
        return turns

    def _take_turns(self, number: int) -> Turns:
        turns: Turns = {name: [] for name in self._decoders}
        for _ in range(number):
            for name in self._drawn():
                decode = self._decoders[name].decode
                turns[name].append([decode() for _ in range(self._arguments.turn)])
        return turns

    def _drawn(self) -> list[str]:
        return self._draw.sample(list(self._decoders), len(self._decoders))


def _compete(
    connection: Connection, arguments: argparse.Namespace, title: str, device: str
) -> None:
    """Measure one model whenever told to; a process of its own."""
    torch.set_num_threads(1)
    native.load()
    with torch.no_grad():
        model = build(_ALL[title], device)
        for batch, new_tokens in itertools.product(arguments.batch, arguments.new_tokens):
            contest = _Contest(model, arguments, batch, new_tokens)
            contest.warm_up()
            connection.send(None)
            connection.recv()
            connection.send(contest.measure())
            del contest
            if model.device.type == "cuda":
                torch.cuda.empty_cache()


class _Competitor:
    """A process that measures one model.

    Attributes
    ----------
    title, device:
        The model and where it is.
    connection:
        To the process.
    """

    def __init__(self, arguments: argparse.Namespace, title: str, device: str) -> None:
        self.title = title
        self.device = device
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        values = (theirs, arguments, title, device)
        self._process = context.Process(target=_compete, args=values, daemon=True)
        self._process.start()
        theirs.close()

    def measure(self) -> None:
        self.connection.send(None)

    def hear(self) -> Any:
        """What the process sends, or that it failed."""
        try:
            return self.connection.recv()
        except EOFError:
            print(f"{self.title} failed and is left out", file=sys.stderr)
            return _FAILED

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _ready(competitors: list[_Competitor], seconds: float) -> list[_Competitor]:
    """Those that have built all they need in time; the others are ended, with a word."""
    waiting = {each.connection: each for each in competitors}
    ready, until = [], time.monotonic() + seconds
    while waiting and (heard := wait(list(waiting), until - time.monotonic())):
        for connection in heard:
            competitor = waiting.pop(connection)  # type: ignore[call-overload]
            if competitor.hear() is not _FAILED:
                ready.append(competitor)
    for late in waiting.values():
        print(f"{late.title} was not ready within {seconds:.0f} s", file=sys.stderr)
        late.end()
    return ready


def _measured(competitors: list[_Competitor]) -> Iterator[tuple[str, Turns]]:
    """What each measures, one at a time on each device."""
    queues: dict[str, list[_Competitor]] = {}
    for each in competitors:
        queues.setdefault(each.device, []).append(each)
    running = {queue[0].connection: queue for queue in queues.values()}
    for queue in running.values():
        queue[0].measure()
    while running:
        for connection in wait(list(running)):
            queue = running.pop(connection)  # type: ignore[call-overload]
            competitor = queue.pop(0)
            turns = competitor.hear()
            if queue:
                queue[0].measure()
                running[queue[0].connection] = queue
            if turns is not _FAILED:
                yield competitor.title, turns


@dataclass(frozen=True)
class _Times:
    """In ms: a first token, a later one, and all of a request's."""

    first: float
    later: float
    all: float

    @classmethod
    def of(cls, turns: list[list[Moment]], new_tokens: int, percentile: float) -> _Times:
        firsts = [seconds for turn in turns for is_first, seconds in turn if is_first]
        laters = [each for turn in turns for each in _later(turn)]
        first, later = (1e3 * float(np.percentile(each, percentile)) for each in (firsts, laters))
        return cls(first, later, first + (new_tokens - 1) * later)


def _interval(ours: list[list[Moment]], alone: list[list[Moment]]) -> tuple[float, float]:
    """A 95 % interval of the ratio of later tokens' medians, less one; turns are drawn together."""
    pairs = [(_later(a), _later(b)) for a, b in zip(ours, alone, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    width = min(len(each) for pair in pairs for each in pair)
    table: NDArray[Any] = np.array([[each[:width] for each in pair] for pair in pairs])
    drawn = np.random.default_rng(0).integers(len(table), size=(500, len(table)))
    ratios = [np.divide(*np.median(table[each], axis=(0, 2))) - 1 for each in drawn]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return low, high


def _later(turn: list[Moment]) -> list[float]:
    return [seconds for is_first, seconds in turn if not is_first]


def _rows(title: str, turns: Turns, new_tokens: int) -> list[tuple[Any, ...]]:
    alone, quiet_alone = (_Times.of(turns["alone"], new_tokens, each) for each in (50, 10))
    rows = []
    for name, taken in turns.items():
        ours, quiet = (_Times.of(taken, new_tokens, each) for each in (50, 10))
        low, high = _interval(taken, turns["alone"])
        rows.append(
            (
                *(
                    title,
                    name,
                    ours.first,
                    ours.later,
                    ours.all,
                    f"{ours.all / alone.all - 1:+.1%}",
                ),
                *(f"{low:+.1%} to {high:+.1%}", quiet.later),
                f"{quiet.later / quiet_alone.later - 1:+.1%}",
                f"{quiet.all / quiet_alone.all - 1:+.1%}",
            )
        )
    return rows


def _means(results: dict[str, Turns], new_tokens: int) -> list[tuple[Any, ...]]:
    """Of each variant, over all models: what it adds to an answer, on average and at most."""
    found: dict[str, list[str]] = {}
    for percentile in (50, 10):
        added: dict[str, list[float]] = {}
        for turns in results.values():
            alone = _Times.of(turns["alone"], new_tokens, percentile).all
            for name, taken in turns.items():
                times = _Times.of(taken, new_tokens, percentile)
                added.setdefault(name, []).append(times.all / alone - 1)
        for name, each in added.items():
            found.setdefault(name, []).extend((f"{np.mean(each):+.2%}", f"{max(each):+.2%}"))
    return [(name, *cells) for name, cells in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compiled", action="store_true", help="static cache, CUDA graphs")
    parser.add_argument("--shapes", nargs="+", choices=_ALL, default=["Llama, 3M parameters"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[60])
    parser.add_argument("--turn", type=int, default=5, help="tokens of a turn")
    parser.add_argument("--turns", type=int, default=96, help="turns of each variant")
    parser.add_argument(
        "--ready-within", type=float, default=600, help="seconds to build and compile, at most"
    )
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    if "alone" not in arguments.variants:
        parser.error("--variants needs alone, which the others are compared with")
    print(native.load(), file=sys.stderr)
    devices = ["cpu"]
    if arguments.device == "cuda":
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    headers = (
        *("shape", "variant", "first token, ms", "later token, ms", "all, ms", "over alone"),
        *("later tokens over alone", "first decile, ms", "over alone", "all, by first deciles"),
    )
    competitors = [
        _Competitor(arguments, title, device)
        for title, device in zip(arguments.shapes, itertools.cycle(devices), strict=False)
    ]
    seconds = []
    for batch, new_tokens in itertools.product(arguments.batch, arguments.new_tokens):
        competitors = _ready(competitors, arguments.ready_within)
        print(f"{batch} rows, {new_tokens} new tokens")
        results: dict[str, Turns] = {}
        seconds.append({"batch": batch, "new_tokens": new_tokens, "seconds": results})
        # Each as soon as it is there: a later one may never be.
        for title, turns in _measured(competitors):
            results[title] = turns
            rows = _rows(title, turns, new_tokens)
            print(tabulate(rows, headers, floatfmt=".2f"), flush=True)
            if arguments.json:
                with open(arguments.json, "w", encoding="utf-8") as file:
                    json.dump({"arguments": vars(arguments), "results": seconds}, file)
        columns = ("all shapes", "mean", "worst", "by first deciles", "worst")
        print(tabulate(_means(results, new_tokens), columns), flush=True)
    for each in competitors:
        each.end()


if __name__ == "__main__":
    main()
