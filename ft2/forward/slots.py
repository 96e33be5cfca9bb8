"""Places for what the layers of a model take in and put out in one step after the other."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Slots"]


class Slots:
    """One place for the input, and one for the output, of each module in a lane.

    Where steps share them, what a step left in a place stays until the same module runs in the next
    one. So memory goes back piece by piece, and to the next layer as it is. What goes back at once
    is joined by torch's allocator of CUDA memory, and cut apart again in the next step.

    Parameters
    ----------
    count:
        How many modules.

    Attributes
    ----------
    seats:
        All their numbers.
    hidden, outputs:
        By the modules' numbers: of the running forward up to `next`, of an earlier one behind that.
    next:
        The number of the module whose turn it is.
    """

    __slots__ = ("hidden", "next", "outputs", "seats")

    def __init__(self, count: int) -> None:
        self.seats = list(range(count))
        self.hidden = [_NOTHING] * count
        self.outputs = [_NOTHING] * count
        self.next = 0


_NOTHING = Tensor()
