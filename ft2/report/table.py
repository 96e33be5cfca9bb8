"""Campaigns as one table, for terminals and for Markdown pages."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tabulate import tabulate

from ft2.report.measures import reweighted_rate
from ft2.report.result import CampaignResult
from ft2.verdict import Allocation, Stratum

__all__ = ["SPACE", "markdown_page", "notes", "table"]

SPACE = (
    "Each step of the fault-free runs was equally likely to be hit, and in it each output element "
    "of the decoder blocks' linear layers; attention's products, lm_head and sampling are outside "
    "this space. A rate and its interval speak of these prompts and of this space."
)
"""What a rate speaks of, in a sentence."""

_HEADERS = (
    "test",
    "faults",
    "masked",
    "SDC",
    "DUE",
    "rate",
    "95 % interval",
    "budget",
    "verdict",
)
_REPLAYS = 3
_DASH = "\N{EN DASH}"


def table(results: Sequence[CampaignResult], style: str = "simple") -> str:
    """Return one row for each campaign; `style` is one of tabulate's formats."""
    return tabulate(
        [_row(result) for result in results],
        headers=_HEADERS,
        tablefmt=style,
        disable_numparse=True,
        colalign=("left", *["right"] * 7, "left"),
    )


def notes(result: CampaignResult) -> list[str]:
    """Return what a reader should know beside the row: lines of plain text."""
    lines = [] if result.verdict is None else [result.verdict.reason]
    if result.chance_of_another_verdict is not None:
        chance = _shown_chance(result.chance_of_another_verdict)
        lines.append(f"Another seed's faults would decide otherwise with a chance of {chance}.")
    prompts = result.interval_for_new_prompts
    if prompts is not None:
        lines.append(
            f"For new prompts like these, each of which counts once: {prompts[0]:.2f}{_DASH}"
            f"{prompts[1]:.2f} %."
        )
    if result.strata:
        lines.append(_drawn(result.strata, result.allocation))
    if result.excluded:
        lines.append(f"Left out, answered wrongly without a fault: {', '.join(result.excluded)}.")
    broken = [each for each in result.golden if each.get("passed_with_protection") is False]
    if broken:
        names = {each["params"] for each in broken}
        own = sum(trial["params"] in names for trial in result.corrupted)
        lines.append(
            f"{result.protection} alone makes {len(broken)} of {len(result.golden)} parameter sets "
            f"fail without a fault; {own} of the {len(result.corrupted)} SDCs are theirs: those "
            "are the protection's wrong answers, not the faults'."
        )
    changed = [golden["params"] for golden in result.golden if golden.get("changed_by_protection")]
    corrected = sum(golden.get("corrected_values") or 0 for golden in result.golden)
    if changed:
        lines.append(
            f"{result.protection} alone changed {len(changed)} of {len(result.golden)} "
            "fault-free outputs."
        )
    elif corrected:
        lines.append(
            f"{result.protection} alone corrected {corrected} values of the fault-free runs; "
            "no output changed."
        )
    again = sum(golden.get("recomputed_steps") or 0 for golden in result.golden)
    if again:
        steps = sum(golden.get("steps") or 0 for golden in result.golden)
        lines.append(
            f"{result.protection} alone computed {again} of {steps} steps of the fault-free runs "
            "again: what it detected there is genuine, or a permanent fault."
        )
    if result.counts.seen:
        lines.append(_where(result))
    for trial in result.corrupted[:_REPLAYS]:
        lines.append(_replay(result, trial["trial"]))
    hidden = len(result.corrupted) - _REPLAYS
    if hidden > 0:
        lines.append(f"… and {hidden} more SDCs; --ft2-json=FILE lists them all.")
    return lines


def markdown_page(results: Sequence[CampaignResult]) -> str:
    """Return a Markdown page with the table, and each campaign's notes below it."""
    parts = ["### Silent data corruption", table(results, "github")]
    for result in results:
        items = "\n".join(f"- {line}" for line in notes(result))
        parts.append(f"**{result.nodeid}**\n\n{items}")
    parts.append(SPACE)
    return "\n\n".join(parts) + "\n"


def _row(result: CampaignResult) -> tuple[str, ...]:
    counts, verdict = result.counts, result.verdict
    # Of trials that have no outcome nothing is known, so there is no rate to show.
    known = verdict if result.complete else None
    rate = _DASH if known is None or known.rate is None else f"{known.rate:.2f} %"
    around = (
        _DASH
        if known is None or known.interval is None
        else f"{known.interval[0]:.2f}{_DASH}{known.interval[1]:.2f} %"
    )
    return (
        result.nodeid,
        str(counts.planned)
        if result.stop is None or result.stop["after"] is None
        else f"{counts.seen} of {counts.planned}",
        str(counts.masked),
        str(counts.sdc),
        str(counts.due),
        rate,
        around,
        f"{result.budget:g} %",
        "no verdict" if verdict is None else verdict.name,
    )


def _shown_chance(per_cent: float) -> str:
    return "less than 1 %" if per_cent < 1 else f"{per_cent:.0f} %"


def _drawn(strata: Sequence[Stratum], allocation: Allocation | None) -> str:
    parts = [
        f"{each.name}, {100 * each.weight:.3g} % of the space, {each.sdc} SDCs in {each.trials} "
        "trials"
        for each in strata
    ]
    how = "Sampled uniformly, as the SDCs gave no reason for strata"
    if allocation is not None:
        how = (
            f"Sampled by strata from trial {allocation.first} on, {_listed(allocation)}, each "
            "stratum weighted by its share"
        )
    return f"{how}: {'; '.join(parts)}."


def _listed(allocation: Allocation) -> str:
    drawn = zip(allocation.more, allocation.strata.names, strict=True)
    listed = ", ".join(f"{more} from {name}" for more, name in drawn if more)
    return f"{allocation.uniform} trials uniformly and of each alone {listed}"


def _where(result: CampaignResult) -> str:
    parts = []
    for name, title in (("first", "first token"), ("later", "later tokens")):
        events, trials = result.phase(name)
        parts.append(f"{events} of {trials} in the {title}")
    line = f"SDCs: {', '.join(parts)}"
    for measure, title in (("elements", "elements"), ("macs", "MACs"), ("time", "time")):
        rate = reweighted_rate(result.trials, measure, result.sampling_weights)
        if rate is not None:
            line += f"; rate by {title} {rate:.2f} %"
    if result.share_outside is not None:
        line += f"; MACs outside the space {100 * result.share_outside:.0f} %"
    return line + "."


def _replay(result: CampaignResult, trial: int) -> str:
    options = "".join(f" {shlex.quote(option)}" for option in result.replay_options)
    return f"pytest --ft2-replay={shlex.quote(f'{result.nodeid}#{trial}')}{options}"
