"""Write ``docs/architectures.md``: what ft2 finds in every causal architecture of transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import ft2
from ft2.layers import UnsupportedModelError
from ft2.protection.policies import profiled_policy
from ft2.report.layers import Group, fold, form_of
from tests.zoo.configs import ARCHITECTURES, small_model

__all__ = [
    "COMMAND",
    "PAGE",
    "PROFILED",
    "Row",
    "committed",
    "page",
    "refusing",
    "registered",
    "row",
    "row_of",
]

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
PROFILED = ("ranger", "maximals", "global-clipper", "ft2-offline")
COMMAND = "python -m tests.zoo.table > docs/architectures.md"

_HEADERS = (
    "architecture",
    "class",
    "projections",
    "critical",
    "critical kinds",
    "other kinds",
    "forms",
    "not protected by",
    "note",
)
_HEADERS_OF_OTHERS = ("architecture", "class", "why not")
_RULE = "---"
_FORMS = ("linear", "fused columns", "experts", "raw parameter")


@dataclass(frozen=True)
class Row:
    """An architecture's cells: one for each header of its table."""

    cells: tuple[str, ...]

    @property
    def model_type(self) -> str:
        """The architecture."""
        return self.cells[0]

    @property
    def supported(self) -> bool:
        """Whether it stands in the table of those that are."""
        return len(self.cells) == len(_HEADERS)


def registered() -> list[str]:
    """Return the architectures that transformers registers as causal language models."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def row(model_type: str) -> Row:
    """Build an architecture small, look into it, and return its row of the table."""
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        return _unsupported(model_type, "This project has no small configuration of it yet.")
    if architecture.unsupported is not None:
        return _unsupported(model_type, architecture.unsupported)
    return row_of(model_type, small_model(model_type))


def row_of(model_type: str, model: Any) -> Row:
    """Look into a small model of an architecture, and return its row of the table."""
    try:
        groups = fold(ft2.projections(model))
    except UnsupportedModelError as error:
        return _unsupported(model_type, f"{error}.")
    critical = [group for group in groups if group.first.critical]
    others = [group for group in groups if not group.first.critical]
    forms = {form_of(group.first) for group in groups}
    cells = (
        model_type,
        type(model).__name__,
        str(len(groups)),
        str(len(critical)),
        _kinds(critical, others),
        _kinds(others, critical),
        _listed(form for form in _FORMS if form in forms),
        _listed(refusing(model)),
        ARCHITECTURES[model_type].note or "",
    )
    return Row(cells)


def refusing(model: Any) -> list[str]:
    """Return the policies with profiled bounds that refuse a model."""
    refused = []
    for policy in PROFILED:
        try:
            profiled_policy(policy).places(model)
        except UnsupportedModelError:
            refused.append(policy)
    return refused


def page(rows: Sequence[Row], version: str) -> str:
    """Return the whole page."""
    supported = [each for each in rows if each.supported]
    others = [each for each in rows if not each.supported]
    return f"""# Architectures

{len(rows)} architectures are registered as causal language models in transformers {version}:
{len(supported)} are supported, {len(others)} are not.

This page is generated, by running a small model of each with random weights:

    {COMMAND}

Supported means that `ft2.projections` finds the linear projections of the decoder blocks and tells
which are critical, that `ft2.protect` leaves what the model generates as it is when there is no
fault, and that a fault injected into each kind of projection strikes there and in no other row of
the batch; `tests/zoo` holds each row to it. Projections are counted once for all blocks and all
experts that are alike. A kind is *in part* critical if only some columns of a fused projection are;
`python -m ft2 layers MODEL` tells which, and the reasons. Raw parameters are those that a module
multiplies with itself, in no linear module.

A model is not protected by a policy that finds nothing there that it is for, or not all of it: then
it refuses the model in one sentence. `ranger` needs activations that are modules, `maximals` the
last projections of the MLPs, `global-clipper` attention whose weights are a softmax.

## Supported

{_table(_HEADERS, supported)}

## Not supported

{_table(_HEADERS_OF_OTHERS, others)}
"""


def committed() -> tuple[str, str, list[Row]]:
    """Return the committed page, the version of transformers that it names, and its rows."""
    text = PAGE.read_text(encoding="utf-8")
    version = text.partition("in transformers ")[2].partition(":")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [Row(tuple(cell.strip() for cell in line.split("|")[1:-1])) for line in lines]
    headings = (_HEADERS[0], _RULE)
    return text, version, [each for each in rows if each.model_type not in headings]


def _table(headers: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [headers, [_RULE] * len(headers), *(each.cells for each in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _unsupported(model_type: str, sentence: str) -> Row:
    return Row((model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type], sentence))


def _kinds(groups: Sequence[Group], others: Sequence[Group]) -> str:
    """Name the kinds of some projections, with their parents where others are of that kind too."""
    ambiguous = {group.first.kind for group in others}
    words = []
    for group in groups:
        word = group.first.kind
        if word in ambiguous:
            path = [part for part in group.first.name.split(".") if not part.isdigit()]
            word = ".".join(path[-2:])
        if group.first.critical and not all(critical for _, _, critical in group.first.columns):
            word += " (in part)"
        words.append(word)
    return _listed(words)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sys.stdout.write(page([row(each) for each in registered()], transformers.__version__))
