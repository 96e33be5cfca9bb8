"""Say where the faults struck that became SDCs: in the first token or later, in which layers.

Reads the trials that ``evaluate.py --json`` kept and draws their faults again; none is injected.
The first token has no bounds yet, and what lies outside the critical layers is not protected by
``ft2``: how many of the SDCs that it leaves began there, the table shows.

Usage: ``python example_suites/paper/origins.py paper.json --dtype fp16 fp32``, from the project's
root.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import ft2
from evaluate import MINIATURES, load_model, load_questions, miniature
from figures.figure import markdown, shown
from ft2.faults import Fault
from ft2.layers import Projection
from ft2.verdict import interval
from precision import Precision
from protections import FT2, NONE, ZERO
from results import Cell, Place, Results
from subject import Subject, make_subject
from trials import SDC, UNREACHED, FaultSet

__all__ = ["Origin", "Origins", "is_critical"]

_FAULT_MODELS = ("1-bit", "2-bit", "exp")
_LABELS = (NONE, FT2, ZERO, "ft2-recompute")


@dataclass(frozen=True)
class Origin:
    """Where a fault strikes.

    Attributes
    ----------
    first:
        Whether that is in the first token.
    critical:
        Whether it is in columns of a critical layer.
    """

    first: bool
    critical: bool

    def __str__(self) -> str:
        step = "the first token" if self.first else "later tokens"
        return f"{step}, {'critical' if self.critical else 'other'} layers"


def is_critical(fault: Fault, projections: Iterable[Projection]) -> bool:
    """Whether a fault strikes columns of a critical layer."""
    found = next(each for each in projections if each.name == fault.layer)
    return any(critical and start <= fault.neuron < stop for start, stop, critical in found.columns)


@dataclass(eq=False)
class Origins:
    """Counts over places of one precision.

    Parameters
    ----------
    fault_models, labels:
        Which faults are counted, under which protections.

    Attributes
    ----------
    faults, sdc:
        How many faults there are of each origin, and how many became SDCs under which protection.
    places, left_out:
        Those that are counted, and those whose faults cannot be drawn again: their questions were
        chosen on a device that rounds otherwise.
    """

    fault_models: Sequence[str] = _FAULT_MODELS
    labels: Sequence[str] = _LABELS
    faults: Counter[Origin] = field(default_factory=Counter)
    sdc: Counter[tuple[Origin, str]] = field(default_factory=Counter)
    places: list[Place] = field(default_factory=list)
    left_out: list[Place] = field(default_factory=list)

    def add(self, subject: Subject, results: Results, seed: int = 0) -> None:
        """Count what is known of a subject's trials, where every protection has met the faults."""
        place = Place(subject.name, subject.task, str(subject.precision))
        digest = str(results.subjects.get(str(place), {}).get("digest", ""))
        if digest.partition(" ")[0] != subject.digest:
            self.left_out.append(place)
            return
        projections = ft2.projections(subject.model)
        for name in self.fault_models:
            faults = FaultSet(name)
            cells = {label: Cell(place, faults, label) for label in self.labels}
            there = {label: results.get(cell) for label, cell in cells.items()}
            count = min(0 if each is None else len(each.outcomes) for each in there.values())
            known = {label: results.known(cell, count) for label, cell in cells.items()}
            entries = {label: each for label, each in known.items() if each is not None}
            if not count or len(entries) < len(cells):
                continue
            for number, (_, fault) in enumerate(faults.draw(subject, range(count), seed)):
                letters = {label: entry.outcomes[number] for label, entry in entries.items()}
                if UNREACHED in letters.values():
                    continue
                origin = Origin(fault.step == 0, is_critical(fault, projections))
                self.faults[origin] += 1
                for label, letter in letters.items():
                    self.sdc[origin, label] += letter == SDC
        self.places.append(place)

    def table(self) -> str:
        """Return the counts and rates in Markdown."""
        rows = []
        total = sum(self.faults.values())
        for first in (True, False):
            for critical in (True, False):
                origin = Origin(first, critical)
                count = self.faults[origin]
                if not count:
                    continue
                row = [str(origin), f"{count} ({100 * count / total:.1f} %)"]
                for label in self.labels:
                    sdc = self.sdc[origin, label]
                    row.append(f"{sdc}: {shown(100 * sdc / count, interval(sdc, count))}")
                rows.append(row)
        headers = ["faults in", "how many", *(f"{label}: SDCs, % [95 %]" for label in self.labels)]
        sentence = f"Models and tasks: {len(self.places)}."
        if self.left_out:
            names = "; ".join(map(str, self.left_out))
            sentence += f" Left out, since this machine would choose other questions: {names}."
        return f"{markdown(rows, headers)}\n\n{sentence}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, metavar="FILE", help="of evaluate.py's results")
    parser.add_argument(
        "--dtype", nargs="+", type=Precision.parse, default=[Precision.parse("fp16")]
    )
    parser.add_argument("--fault-models", nargs="+", choices=_FAULT_MODELS, default=_FAULT_MODELS)
    parser.add_argument("--policies", nargs="+", default=_LABELS, metavar="NAME")
    parser.add_argument("--models", nargs="+", choices=list(MINIATURES), default=list(MINIATURES))
    parser.add_argument("--seed", type=int, default=0, help="that of the trials (default: 0)")
    return parser


def main() -> int:
    """Write a table of each precision; return the exit status."""
    options = parser().parse_args()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if not options.json.exists():
        sys.stderr.write(f"origins.py: {options.json} is not there\n")
        return 2
    results = Results.open(options.json)
    questions = load_questions([])
    for precision in options.dtype:
        origins = Origins(options.fault_models, options.policies)
        for name in tqdm(options.models, desc=str(precision), unit="model"):
            tasks = [
                task
                for task in MINIATURES[name]
                if str(Place(name, task, str(precision))) in results.subjects
            ]
            if not tasks:
                continue
            model, tokenizer = load_model(str(miniature(name)), precision, "cpu")
            for task in tasks:
                subject = make_subject(name, task, precision, model, tokenizer, questions[task])
                origins.add(subject, results, options.seed)
        sys.stdout.write(f"**{precision}**\n\n{origins.table()}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
