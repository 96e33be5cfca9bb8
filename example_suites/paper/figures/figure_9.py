"""Figure 9: how far the bounds of the first token are widened."""

from __future__ import annotations

from bench import Bench, Need
from figures.figure import Figure, Selection, known, markdown, with_interval
from protections import FT2, NONE, Protection
from published import paper_says
from results import Results, pairs
from trials import FaultSet

__all__ = ["Figure9"]

_OWN = 2.0
_SCALES = (1.0, 1.25, 1.5, _OWN, 3.0, 4.0)


class Figure9(Figure):
    """SDC rates by the scale of the bounds."""

    name = "Figure 9"
    title = "SDC rates by the scale of ft2's bounds (the paper: Qwen2-7B, GSM8K)"
    models = ("qwen2-7b",)
    tasks = ("gsm8k",)

    def needs(self, bench: Bench, selection: Selection) -> list[Need]:
        faults = FaultSet(selection.exponent)
        scaled = [Protection(_label(scale), FT2, _of(scale)) for scale in _SCALES]
        return [Need(protection, faults) for protection in (Protection(NONE, NONE), *scaled)]

    def table(self, results: Results, selection: Selection) -> str:
        faults = FaultSet(selection.exponent)
        scales = {_label(scale): f"{scale:g}" for scale in _SCALES}
        rows = []
        for place in self.places(selection):
            column = known(results, place, faults, [NONE, *scales], selection.trials)
            for label, entry in column.items():
                scale = scales.get(label, "")
                compared = pairs([column[NONE]], [entry]) if NONE in column else None
                free = entry.fault_free
                rows.append(
                    [
                        str(place),
                        scale or "unprotected",
                        with_interval(entry),
                        f"{compared.p_value:.1g}" if scale and compared else "",
                        scale and paper_says("9", model=place.model, task=place.task, scale=scale),
                        f"{free.wrong}/{free.questions}",
                        free.changed,
                        free.corrected,
                        entry.trials,
                        f"{entry.seconds:.0f}",
                    ]
                )
        return markdown(
            rows,
            [
                "model, task, precision",
                "scale",
                "SDC % [95 %]",
                "p against unprotected",
                "paper",
                "wrong without fault",
                "texts changed without fault",
                "values corrected without fault",
                "faults",
                "seconds",
            ],
        )


def _label(scale: float) -> str:
    return FT2 if scale == _OWN else f"{FT2}, scale {scale:g}"


def _of(scale: float) -> float | None:
    return None if scale == _OWN else scale
