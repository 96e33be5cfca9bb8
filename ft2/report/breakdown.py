"""Where faults matter: outcomes by phase, by kind of layer and by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ft2.report.drawn import Drawn, FixedTrials
from ft2.report.fault_text import fault_fields
from ft2.verdict import Cell

__all__ = ["breakdown", "layer_kind"]


def breakdown(
    trials: Sequence[Mapping[str, Any]],
    drawn: Drawn | None = None,
    sampling_weights: Mapping[int, float] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Count the outcomes of trials that have one, in each part of the space.

    Parameters
    ----------
    trials:
        Records of trials, as in the JSON document. One that died with its fault unknown is in no
        part.
    drawn:
        Makes the intervals; None: those of uniform trials, as many as were planned.
    sampling_weights:
        What trials count in a rate, by their numbers; others, and all if None, count 1.

    Returns
    -------
    dict
        By ``phase`` (``first`` token or ``later``), ``layer_kind`` (the projection's path inside
        its block) and ``bit`` (the highest flipped, 0 the least significant), the parts; of each
        ``trials``, ``masked``, ``sdc`` and ``due``, ``rate`` and ``interval`` in per cent. A part's
        interval holds for that part; that all hold at once it does not say.
    """
    weights, drawn = sampling_weights or {}, drawn or FixedTrials()
    parts: dict[str, dict[str, list[Mapping[str, Any]]]] = {
        "phase": {},
        "layer_kind": {},
        "bit": {},
    }
    for trial in trials:
        if not trial["outcome"] or not trial.get("fault"):
            continue
        fault = fault_fields(trial["fault"])
        where = {
            "phase": "first" if fault["step"] == "0" else "later",
            "layer_kind": layer_kind(fault["layer"]),
            "bit": fault["bits"].rpartition(":")[2],
        }
        for name, part in where.items():
            parts[name].setdefault(part, []).append(trial)
    return {
        name: {
            part: _counted(found[part], weights, drawn, partial(_is_in, name, part))
            for part in sorted(found, key=_order)
        }
        for name, found in parts.items()
    }


def _is_in(name: str, part: str, cell: Cell) -> bool:
    places = {"phase": cell.phase, "layer_kind": cell.kind, "bit": str(cell.bit)}
    return places[name] == part


def layer_kind(layer: str) -> str:
    """Return a projection's path inside its block, without numbers.

    Examples
    --------
    >>> layer_kind("model.layers.3.mlp.experts.7.up_proj")
    'mlp.experts.up_proj'
    """
    path = layer.split(".")
    block = next((place for place, name in enumerate(path) if name.isdigit()), -1)
    return ".".join(name for name in path[block + 1 :] if not name.isdigit())


def _order(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (0, part)


def _counted(
    seen: Sequence[Mapping[str, Any]],
    weights: Mapping[int, float],
    drawn: Drawn,
    holds: Callable[[Cell], bool],
) -> dict[str, Any]:
    outcomes = [trial["outcome"] for trial in seen]
    counts = [weights.get(trial["trial"], 1.0) for trial in seen]
    wrong = sum(count for outcome, count in zip(outcomes, counts, strict=True) if outcome == "sdc")
    rate = 100 * wrong / sum(counts)
    low, high = drawn.of_part(seen, holds)
    return {
        "trials": len(outcomes),
        "masked": outcomes.count("masked"),
        "sdc": outcomes.count("sdc"),
        "due": outcomes.count("due"),
        "rate": rate,
        # The rate is that of all trials, the interval perhaps that of some.
        "interval": [min(low, rate), max(high, rate)],
    }
