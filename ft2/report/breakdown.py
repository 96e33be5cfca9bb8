"""Where faults matter: outcomes by phase, by kind of layer and by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["breakdown", "layer_kind"]

Interval = Callable[[int, int], tuple[float, float] | None]


def breakdown(
    trials: Sequence[Mapping[str, Any]],
    interval_of: Interval,
    sampling_weights: Mapping[str, float] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Count the outcomes of trials that have one, in each part of the space.

    Parameters
    ----------
    trials:
        Records of trials, as in the JSON document. One that died with its fault unknown is in no
        part.
    interval_of:
        Makes the interval, in per cent, of (SDCs, trials); or None where there is none.
    sampling_weights:
        What a trial of each stratum counts in a rate; None: as much as any other.

    Returns
    -------
    dict
        By ``phase`` (``first`` token or ``later``), ``layer_kind`` (the projection's path inside
        its block) and ``bit`` (the highest flipped, 0 the least significant), the parts; of each
        ``trials``, ``masked``, ``sdc`` and ``due``, ``rate`` and ``interval`` in per cent. A part's
        interval holds for that part; that all hold at once it does not say.
    """
    weights = sampling_weights or {}
    parts: dict[str, dict[str, list[tuple[str, float]]]] = {
        "phase": {},
        "layer_kind": {},
        "bit": {},
    }
    for trial in trials:
        if not trial["outcome"] or not trial.get("fault"):
            continue
        # Its class would bring torch into the process that only counts.
        fault = dict(part.split("=") for part in trial["fault"].split(","))
        where = {
            "phase": "first" if fault["step"] == "0" else "later",
            "layer_kind": layer_kind(fault["layer"]),
            "bit": fault["bits"].rpartition(":")[2],
        }
        for name, part in where.items():
            weight = weights.get(trial.get("stratum", ""), 1.0)
            parts[name].setdefault(part, []).append((trial["outcome"], weight))
    return {
        name: {part: _counted(found[part], interval_of) for part in sorted(found, key=_order)}
        for name, found in parts.items()
    }


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


def _counted(seen: list[tuple[str, float]], interval_of: Interval) -> dict[str, Any]:
    outcomes = [outcome for outcome, _ in seen]
    sdc = outcomes.count("sdc")
    around = interval_of(sdc, len(outcomes))
    wrong = sum(weight for outcome, weight in seen if outcome == "sdc")
    return {
        "trials": len(outcomes),
        "masked": outcomes.count("masked"),
        "sdc": sdc,
        "due": outcomes.count("due"),
        "rate": 100 * wrong / sum(weight for _, weight in seen),
        "interval": None if around is None else [*around],
    }
