"""The next token of each row, decoded greedily."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ft2.campaign.prompt import Prompt

__all__ = ["Bans", "likeliest"]

# Rows, int64 (rows, 1), the tokens that none of them may say, int64 (tokens,), and minus infinity.
Ban = tuple[Tensor, Tensor, Tensor]


class Bans:
    """What rows may not say yet, on their device; it mostly stays from one step to the next."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[list[int], Ban]] = {}

    def of(self, rows: Iterable[tuple[int, Prompt, int]], device: torch.device) -> list[Ban]:
        """Return the tokens that would end answers too early.

        Parameters
        ----------
        rows:
            Of each row in use its place, its prompt, and how many tokens it has said.
        """
        early: dict[tuple[int, ...], list[int]] = {}
        for place, prompt, said in rows:
            if said < prompt.least and prompt.ends:
                early.setdefault(prompt.ends, []).append(place)
        known, self._known = self._known, {}
        for ends, places in early.items():
            if ends not in known or known[ends][0] != places:
                at = torch.tensor(places, device=device)[:, None]
                lowest = torch.tensor(-torch.inf, device=device)
                known[ends] = places, (at, torch.tensor(ends, device=device), lowest)
            self._known[ends] = known[ends]
        return [ban for _, ban in self._known.values()]


def likeliest(logits: Tensor, bans: Sequence[Ban]) -> Tensor:
    """Return the next token of every row, int64 (rows,), without waiting for the device.

    Parameters
    ----------
    logits:
        (rows, tokens, vocabulary); may be changed.
    bans:
        What rows may not say.
    """
    scores = logits[:, -1].to(torch.float32)
    for at, ends, lowest in bans:
        scores.index_put_((at, ends), lowest)
    return scores.argmax(-1)
