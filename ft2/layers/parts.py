"""The kinds of projections of a model: the same projection of all its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ft2.layers.find import projections
from ft2.layers.projection import Projection

__all__ = ["Part", "part_of", "parts_of"]


@dataclass(frozen=True)
class Part:
    """One kind of projection, in all blocks: of a fused one, the columns that are (not) critical.

    Attributes
    ----------
    label:
        The projections' path inside their block.
    critical, reason:
        The rule's answer.
    """

    label: str
    critical: bool
    reason: str = field(compare=False)

    @property
    def rule(self) -> str:
        """The rule's answer, for a table."""
        return "critical" if self.critical else "not critical"


def part_of(projection: Projection, critical: bool) -> Part:
    """Return the part that the projection's columns that are (not) critical belong to."""
    path = projection.name.split(".")
    block = next((i for i, name in enumerate(path) if name.isdigit()), -1)
    label = ".".join(name for name in path[block + 1 :] if not name.isdigit())
    if len(projection.columns) > 1:
        label += ", critical columns" if critical else ", other columns"
        return Part(label, critical, f"of all its columns: {projection.reason}")
    return Part(label, critical, projection.reason)


def parts_of(model: nn.Module) -> list[Part]:
    """List all parts of the model, in forward order."""
    found = (
        part_of(projection, critical)
        for projection in projections(model)
        for _, _, critical in projection.columns
    )
    return list(dict.fromkeys(found))
