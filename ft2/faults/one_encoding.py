"""The one number format that strata of faults are of."""

from __future__ import annotations

from ft2.faults.formats import NumberFormat, number_format
from ft2.faults.space import EmptySpaceError, Space

__all__ = ["one_encoding"]


def one_encoding(space: Space, encoding: str | None) -> NumberFormat:
    """Return the format whose bits faults flip in all layers.

    Parameters
    ----------
    space:
        The sites of a run.
    encoding:
        The format whose bits are flipped; None: the layers' own.

    Raises
    ------
    EmptySpaceError
        If the run computed nothing that a fault could hit.
    ValueError
        If layers compute in several formats and `encoding` does not name one.
    """
    if not space.encodings:
        raise EmptySpaceError("no projection of a decoder block computed a real token")
    names = space.encodings if encoding is None else {encoding}
    if len(names) != 1:
        raise ValueError(
            f"stratified sampling needs one number format, but the layers compute in "
            f"{', '.join(sorted(names))}: name one with --ft2-encoding"
        )
    (name,) = names
    return number_format(name)
