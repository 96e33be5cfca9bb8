"""What the rows of a batch are fed: each one's last token, its position, and how many it owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RowInputs"]


class RowInputs:
    """The inputs of a batch's next forward, on the host, and at addresses that stay on the device.

    Parameters
    ----------
    rows:
        Of the batch; none is in use.
    device:
        Where they are fed.

    Attributes
    ----------
    tokens, positions, lengths:
        int64 (rows,), on the device, as of the last :meth:`send`.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._host = torch.zeros(3, rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._sent = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self._own = torch.zeros(rows, dtype=torch.int64)
        self._is_used = torch.zeros(rows, dtype=torch.bool)
        self.tokens, self.positions, self.lengths = self._sent

    def join(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Use rows that own nothing yet: of each its place, its last token, and that's position."""
        places, tokens, positions = torch.tensor(rows).T
        self._host[0, places] = tokens
        self._host[1, places] = positions
        self._own[places] = 0
        self._is_used[places] = True

    def leave(self, places: Sequence[int]) -> None:
        """Use rows no more."""
        at = torch.tensor(places, dtype=torch.int64)
        self._host[:2, at] = 0
        self._is_used[at] = False

    def send(self) -> int:
        """Copy the inputs to the device; return one more than the most that a row in use owns.

        Only once what was computed of the last ones is known: the copy does not wait.
        """
        width = int(self._own[self._is_used].max()) + 1
        # A row out of use writes where no row has been: what it was may still be read.
        self._host[2] = self._own.masked_fill(~self._is_used, width - 1)
        self._sent.copy_(self._host, non_blocking=True)
        return width

    def go_on(self, said: Tensor) -> None:
        """Feed next what rows in use have said, int64 (rows,); each owns one token more."""
        self._host[0] = said * self._is_used
        self._host[1] += self._is_used
        self._own += self._is_used
