"""Show how the values of a model's projections are distributed (FT2, Figures 8 and 12).

A model answers one question without a fault, and the outputs of all projections of one block are
kept. The first table stands for Figure 8: what lies between -1 and 1, and what is NaN-vulnerable
(its magnitude between 1 and 2: in fp16 a flip of the highest exponent bit makes a NaN of it). The
second is the histogram of both figures, in per cent of a layer's values.

Usage: ``python example_suites/paper/distributions.py opt-6.7b-mini vicuna-7b-mini``, from the
project's root. A name is a miniature's, or the path or id of any model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import ft2
from ft2.layers import Projection
from readers import read_questions
from tasks import TASKS

__all__ = ["EDGES", "block_projections", "histogram", "output_values", "summary"]

HERE = Path(__file__).resolve().parent

# Of the histogram's intervals; the outermost reach to infinity.
EDGES = (-8.0, -4.0, -2.0, -1.0, -0.5, -0.1, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


def block_projections(model: nn.Module, block: int) -> list[Projection]:
    """Return the projections of one decoder block.

    Raises
    ------
    ValueError
        If the model has no such block.
    """
    found = ft2.projections(model)
    inside = [each for each in found if _block(each) == block]
    if not inside:
        raise ValueError(f"the model has no block {block}: its projections are {_names(found)}")
    return inside


def _block(projection: Projection) -> int | None:
    """Return the number of a projection's block: the first in its name; experts have a second."""
    numbers = (part for part in projection.name.split(".") if part.isdecimal())
    return next(map(int, numbers), None)


def _names(found: Sequence[Projection]) -> str:
    return ", ".join(each.name for each in found)


@torch.no_grad()
def output_values(
    model: PreTrainedModel, projections: Sequence[Projection], prompt: Tensor, new_tokens: int
) -> dict[str, Tensor]:
    """Return all values that projections put out while an answer is generated greedily.

    Parameters
    ----------
    model:
        The model.
    projections:
        Projections whose modules return their output.
    prompt:
        Token ids, int64, (1, tokens).
    new_tokens:
        How many tokens are generated at most.

    Returns
    -------
    dict of Tensor
        By the projection's name, its values over all tokens and steps: float32, one dimension.
    """
    kept: dict[str, list[Tensor]] = {each.name: [] for each in projections}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, given, output: kept[name].append(output.detach().float().flatten())

    handles = [
        model.get_submodule(each.name).register_forward_hook(keep(each.name))
        for each in projections
    ]
    try:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
        )
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}


def summary(values: Tensor) -> dict[str, float]:
    """Return the range of some values and, in per cent, how many lie where Figure 8 looks."""
    size = values.abs()
    return {
        "least": float(values.min()),
        "largest": float(values.max()),
        "within ±1 %": _percent(size < 1),
        "NaN-vulnerable %": _percent((size > 1) & (size < 2)),
        "beyond 10 deviations %": _percent(size > 10 * values.std()),
    }


def histogram(values: Tensor) -> list[float]:
    """Return how many per cent of some values lie in each interval between :data:`EDGES`."""
    interval = torch.bucketize(values, torch.tensor(EDGES))
    counts = torch.bincount(interval, minlength=len(EDGES) + 1)
    return [100 * float(count) / len(values) for count in counts]


def _percent(which: Tensor) -> float:
    return 100 * float(which.float().mean())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a miniature, a path or an id")
    parser.add_argument("--block", type=int, default=1, help="which block (default: 1, as there)")
    parser.add_argument("--task", choices=list(TASKS), default="squad", help="default: squad")
    parser.add_argument("--question", type=int, default=0, help="its number, from 0 (default: 0)")
    return parser


def tables(name: str, block: int, task: str, question: int) -> str:
    """Return both tables for one model."""
    own = HERE / "miniatures" / name
    place = str(own) if own.is_dir() else name
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    asked = read_questions(task, HERE / "questions" / f"{task}.jsonl")[question]
    found = block_projections(model, block)
    prompt = tokenizer(asked.prompt, return_tensors="pt")["input_ids"]
    values = output_values(model, found, prompt, TASKS[task].new_tokens)
    rows = [
        {
            "layer": each.kind,
            "critical": "yes" if each.critical else "no",
            **summary(values[each.name]),
        }
        for each in found
    ]
    intervals = [f"..{EDGES[0]:g}", *(f"..{edge:g}" for edge in EDGES[1:]), f"{EDGES[-1]:g}.."]
    shares = [[each.kind, *histogram(values[each.name])] for each in found]
    return "\n\n".join(
        [
            f"**{name}**, block {block}, question {asked.id}",
            tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"),
            tabulate(shares, headers=["% in", *intervals], tablefmt="github", floatfmt=".2f"),
        ]
    )


def main() -> int:
    """Write the tables of each model; return the exit status."""
    options = parser().parse_args()
    for name in options.models:
        text = tables(name, options.block, options.task, options.question)
        sys.stdout.write(f"{text}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
