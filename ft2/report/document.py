"""Campaigns as one JSON document, the contract that other tools build on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ft2.report.breakdown import breakdown
from ft2.report.measures import rates_by_measure, reweighted_rate
from ft2.report.result import CampaignResult
from ft2.verdict import Allocation

__all__ = ["SCHEMA", "as_document", "write_document"]

SCHEMA = 1


def as_document(
    results: Sequence[CampaignResult], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the document as plain values.

    Rates, intervals and budgets are in per cent. A value that is not finite, which JSON cannot
    hold, is the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.
    """
    document = {
        "schema": SCHEMA,
        "environment": dict(environment),
        "campaigns": [_campaign(result) for result in results],
    }
    finite = _finite(document)
    assert isinstance(finite, dict)
    return finite


def write_document(
    path: Path, results: Sequence[CampaignResult], environment: Mapping[str, Any]
) -> None:
    """Write the document to `path`.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    document = as_document(results, environment)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _campaign(result: CampaignResult) -> dict[str, Any]:
    verdict = result.verdict
    new_prompts = result.interval_for_new_prompts
    largest = result.largest_weights if result.complete else None
    drawn, weights = result.drawn, result.sampling_weights
    return {
        "nodeid": result.nodeid,
        "seed": result.seed,
        "fault_model": result.fault_model,
        "protection": result.protection,
        "encoding": result.encoding,
        "budget": result.budget,
        "due_budget": result.due_budget,
        "confidence": result.confidence,
        "planned": result.counts.planned,
        "masked": result.counts.masked,
        "sdc": result.counts.sdc,
        "due": result.counts.due,
        "sampling": result.sampling,
        "strata": None if result.strata is None else [*map(asdict, result.strata)],
        "allocation": None if result.allocation is None else _allocation(result.allocation),
        "stop": result.stop,
        "rate": None if verdict is None else verdict.rate,
        "interval": None if verdict is None or verdict.interval is None else [*verdict.interval],
        "interval_for_new_prompts": None if new_prompts is None else [*new_prompts],
        "chance_of_another_verdict": result.chance_of_another_verdict,
        "breakdown": breakdown(result.trials, drawn, weights),
        "measures": rates_by_measure(result.trials, largest, drawn, weights),
        "rate_by_macs": reweighted_rate(result.trials, "macs", weights),
        "rate_by_time": reweighted_rate(result.trials, "time", weights),
        "share_of_macs_outside": result.share_outside,
        "verdict": None if verdict is None else verdict.name,
        "reason": None if verdict is None else verdict.reason,
        "golden": list(result.golden),
        "excluded": list(result.excluded),
        "trials": list(result.trials),
    }


def _allocation(allocation: Allocation) -> dict[str, Any]:
    more = dict(zip(allocation.strata.names, allocation.more, strict=True))
    return {"first": allocation.first, "uniform": allocation.uniform, "more": more}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
