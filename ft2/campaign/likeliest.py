"""The next token of each row, decoded greedily."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ft2.campaign.prompt import Prompt

__all__ = ["Ban", "bans", "likeliest"]

# Rows, int64 (rows, 1), the tokens that none of them may say, int64 (tokens,), and minus infinity.
Ban = tuple[Tensor, Tensor, Tensor]


def bans(rows: Iterable[tuple[int, Prompt, int]], device: torch.device) -> list[Ban]:
    """Return what rows may not say yet, on their device: tokens that would end answers too early.

    Parameters
    ----------
    rows:
        Of each row in use its place, its prompt, and how many tokens it has said.
    """
    early: dict[tuple[int, ...], list[int]] = {}
    for place, prompt, said in rows:
        if said < prompt.least and prompt.ends:
            early.setdefault(prompt.ends, []).append(place)
    lowest = torch.tensor(-torch.inf, device=device)
    return [
        (torch.tensor(places, device=device)[:, None], torch.tensor(ends, device=device), lowest)
        for ends, places in early.items()
    ]


def likeliest(logits: Tensor, banned: Sequence[Ban]) -> Tensor:
    """Return the next token of every row, int64 (rows,), without waiting for the device.

    Parameters
    ----------
    logits:
        (rows, tokens, vocabulary); may be changed.
    banned:
        What rows may not say.
    """
    scores = logits[:, -1].to(torch.float32)
    for at, ends, lowest in banned:
        scores.index_put_((at, ends), lowest)
    return scores.argmax(-1)
