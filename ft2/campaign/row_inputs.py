"""What the rows of a batch are fed: each one's last token, its position, and how many it owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ft2.campaign.prompt import Prompt

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
        # How many tokens each may still say, and how many it must before it may end.
        self._left = torch.zeros(rows, dtype=torch.int64)
        self._owed = torch.zeros(rows, dtype=torch.int64)
        self._is_used = torch.zeros(rows, dtype=torch.bool)
        self._ends = torch.zeros(0, dtype=torch.int64)
        self.tokens, self.positions, self.lengths = self._sent

    def join(self, rows: Sequence[tuple[int, Prompt, Sequence[int]]]) -> None:
        """Use rows that own nothing yet: of each its place, its prompt, and what it has said."""
        places, tokens, positions, left, owed = torch.tensor(
            [
                (
                    place,
                    said[-1],
                    len(prompt.tokens) + len(said) - 1,
                    prompt.most - len(said),
                    prompt.least - len(said),
                )
                for place, prompt, said in rows
            ]
        ).T
        self._host[0, places] = tokens
        self._host[1, places] = positions
        self._own[places] = 0
        self._left[places] = left
        self._owed[places] = owed
        self._is_used[places] = True
        known = set(self._ends.tolist())
        ends = known.union(*{prompt.ends for _, prompt, _ in rows})
        if ends != known:
            self._ends = torch.tensor(sorted(ends))

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

    @property
    def may_not_end(self) -> Tensor:
        """bool (rows,): the rows in use whose next token may not be their last."""
        return self._is_used & (self._owed > 0)

    def go_on(self, said: Tensor) -> list[int]:
        """Feed next what rows in use have said, int64 (rows,); each owns one token more.

        Returns the places of the rows that are over: all of them, and those that said what ends
        another row.
        """
        one = self._is_used.to(torch.int64)
        self._host[0] = said * one
        self._host[1] += one
        self._own += one
        self._left -= one
        self._owed -= one
        over = self._left <= 0
        if len(self._ends):
            over |= torch.isin(said, self._ends)
        found: list[int] = (over & self._is_used).nonzero()[:, 0].tolist()
        return found
