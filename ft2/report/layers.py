"""The projections of a model as a table, with what repeats told once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tabulate import tabulate

from ft2.layers import Projection

__all__ = ["Group", "critical_columns", "fold", "form_of", "layers_table"]

_HEADERS = ("projection", "kind", "critical", "critical columns", "reason")
_MOST_RANGES = 4
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

Ranges = list[tuple[int, int]]
_Path = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Projections that are alike but for the numbers in their names.

    Attributes
    ----------
    name:
        Their name, with the numbers of blocks and experts as ranges
        (``model.layers.0-31.mlp.up_proj``).
    first:
        The first of them.
    size:
        How many they are.
    """

    name: str
    first: Projection
    size: int


@dataclass(frozen=True)
class _Line:
    path: _Path
    first: Projection
    size: int

    @property
    def likeness(self) -> tuple[object, ...]:
        """What two lines must share to be told once; reasons name the next block's layers."""
        each = self.first
        sizes = (each.in_features, each.out_features, form_of(each))
        return (self.path, self.size, each.kind, each.columns, sizes)


@dataclass
class _Entry:
    """What is found under one path, or under several that differ in their last number."""

    path: _Path
    lines: list[_Line]
    numbers: list[int] = field(default_factory=list)

    def told_once(self) -> list[_Line]:
        path, times = self.path, 1
        if self.numbers:
            path, times = (*path, _numbers(self.numbers)), len(self.numbers)
        return [_Line((*path, *each.path), each.first, each.size * times) for each in self.lines]


def fold(found: Sequence[Projection]) -> list[Group]:
    """Tell once what is alike in several blocks, or in several experts of a block."""
    lines = _folded([(tuple(each.name.split(".")), each) for each in found])
    return [Group(".".join(line.path), line.first, line.size) for line in lines]


def form_of(projection: Projection) -> str:
    """Say in which form the model holds a projection."""
    if projection.expert is not None:
        return "experts"
    if projection.weight is not None:
        return "raw parameter"
    return "fused columns" if len(projection.columns) > 1 else "linear"


def layers_table(
    found: Sequence[Projection], *, unfolded: bool = False, reason_width: int | None = None
) -> str:
    """Return the projections as a table, and a line that counts them.

    Parameters
    ----------
    found:
        The projections.
    unfolded:
        Whether each has a row of its own.
    reason_width:
        Wrap reasons beyond so many characters; None: never.
    """
    groups = [Group(each.name, each, 1) for each in found] if unfolded else fold(found)
    rows = [
        (
            group.name,
            group.first.kind,
            _criticality(group.first),
            critical_columns(group.first),
            group.first.reason,
        )
        for group in groups
    ]
    table = tabulate(
        rows,
        headers=_HEADERS,
        tablefmt="simple",
        disable_numparse=True,
        maxcolwidths=[None] * 4 + [reason_width],
    )
    return f"{table}\n\n{_summary(found, len(groups))}"


def critical_columns(projection: Projection) -> str:
    """Say which columns of a fused projection are critical; nothing of any other."""
    if len(projection.columns) == 1:
        return ""
    ranges = [(start, stop) for start, stop, critical in projection.columns if critical]
    if not ranges:
        return ""
    stride = _stride(ranges)
    if stride is not None and projection.out_features == stride * len(ranges):
        return f"{_span(*ranges[0])} of each {stride}"
    shown = [_span(*each) for each in ranges]
    if len(shown) > _MOST_RANGES:
        shown = [*shown[: _MOST_RANGES - 1], _ELLIPSIS, shown[-1]]
    return ", ".join(shown)


def _criticality(projection: Projection) -> str:
    if not projection.critical:
        return "no"
    return "yes" if all(critical for _, _, critical in projection.columns) else "in part"


def _summary(found: Sequence[Projection], rows: int) -> str:
    critical = [each for each in found if each.critical]
    parts = sum(not all(is_critical for _, _, is_critical in each.columns) for each in critical)
    text = f"{_counted(len(found), 'projection')}, {len(critical):,} of them critical"
    if parts:
        text += f" ({parts:,} in part of their columns)"
    if rows < len(found):
        text += (
            f"; {_counted(rows, 'row')}, each with the reason of its first projection"
            " (--all: a row for each)"
        )
    return f"{text}."


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _folded(items: Sequence[tuple[_Path, Projection]]) -> list[_Line]:
    """Fold names at their first number, and what follows it likewise."""
    inside: dict[_Path, list[tuple[_Path, Projection]]] = {}
    for path, projection in items:
        end = next((at for at, part in enumerate(path, 1) if part.isdigit()), len(path))
        inside.setdefault(path[:end], []).append((path[end:], projection))
    entries: dict[object, _Entry] = {}
    for path, rest in inside.items():
        if path and path[-1].isdigit():
            lines = _folded(rest)
            key = (path[:-1], tuple(line.likeness for line in lines))
            entries.setdefault(key, _Entry(path[:-1], lines)).numbers.append(int(path[-1]))
        else:
            entries[path] = _Entry(path, [_Line((), projection, 1) for _, projection in rest])
    return [line for entry in entries.values() for line in entry.told_once()]


def _numbers(numbers: Iterable[int]) -> str:
    """Write numbers as ranges: ``0-3,5``; ranges that repeat evenly are left out."""
    ranges: Ranges = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    shown = [_span(*each) for each in ranges]
    if len(shown) > _MOST_RANGES and _stride(ranges) is not None:
        shown = [*shown[:2], _ELLIPSIS, shown[-1]]
    return ",".join(shown)


def _stride(ranges: Ranges) -> int | None:
    """How far the ranges lie apart, if they are of one length and evenly spread."""
    lengths = {stop - start for start, stop in ranges}
    strides = {right[0] - left[0] for left, right in pairwise(ranges)}
    return strides.pop() if len(lengths) == 1 and len(strides) == 1 else None


def _span(start: int, stop: int) -> str:
    return str(start) if stop == start + 1 else f"{start}-{stop - 1}"
