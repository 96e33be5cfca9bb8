"""What is done with values out of bounds, and with those that are no numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ft2.protection import kernels

__all__ = ["CLAMP", "CLIP", "CORRECTIONS", "ZERO", "Correction"]


class Correction(ABC):
    """A way to correct values.

    Each works in the dtype of the bounds and counts the values that are other ones afterwards.
    """

    @abstractmethod
    def correct(self, values: Tensor, below: Tensor, above: Tensor) -> Tensor:
        """Return `values`, any shape, corrected, in their dtype.

        Parameters
        ----------
        values:
            Any floating-point dtype.
        below, above:
            Finite bounds in a shape that broadcasts to theirs.
        """

    def restrict(
        self, output: Tensor, live: Tensor | None, bounds: Tensor, corrected: Tensor
    ) -> Tensor:
        """Return a layer's output, corrected; it may be changed in place.

        Parameters
        ----------
        output:
            (rows, tokens, columns).
        live:
            bool (rows, tokens or 1), False where corrections are not counted; None when all count.
        bounds:
            (2, requests), lower ones first, contiguous; rows is a multiple of requests.
        corrected:
            int64 (requests,); updated in place.
        """
        by_row = bounds.repeat_interleave(output.shape[0] // bounds.shape[1], 1)
        changed = self.correct(output, by_row[0, :, None, None], by_row[1, :, None, None])
        wrong = _differ(changed, output)
        if live is not None:
            wrong = wrong & live[..., None]
        corrected.add_(wrong.reshape(corrected.shape[0], -1).sum(1))
        return changed

    def restrict_vectors(
        self,
        values: Tensor,
        live: Tensor | None,
        bounds: Tensor,
        request: Tensor,
        corrected: Tensor,
    ) -> Tensor:
        """Return vectors, each corrected to bounds of its own.

        Parameters
        ----------
        values:
            (vectors, columns).
        live:
            bool (vectors,), False where corrections are not counted; None when all count.
        bounds:
            (2, vectors), lower ones first.
        request:
            int64 (vectors,): whose each is.
        corrected:
            int64 (requests,); updated in place.
        """
        changed = self.correct(values, bounds[0, :, None], bounds[1, :, None])
        wrong = _differ(changed, values)
        if live is not None:
            wrong = wrong & live[:, None]
        corrected.index_add_(0, request, wrong.sum(1))
        return changed


class _Clip(Correction):
    """NaN becomes 0 first, what is out of bounds the bound (FT2, section 4.3, Take-away 8)."""

    def correct(self, values: Tensor, below: Tensor, above: Tensor) -> Tensor:
        return torch.clamp(torch.nan_to_num(values, nan=0.0), below, above).to(values.dtype)

    def restrict(
        self, output: Tensor, live: Tensor | None, bounds: Tensor, corrected: Tensor
    ) -> Tensor:
        return kernels.restrict(output, live, bounds, corrected)


class _Zero(Correction):
    """NaN becomes 0, and so does what is out of bounds, rather than the bound."""

    def correct(self, values: Tensor, below: Tensor, above: Tensor) -> Tensor:
        # NaN is within no bounds.
        within = (values >= below) & (values <= above)
        return torch.where(within, values, torch.zeros_like(values))


class _Clamp(Correction):
    """What is out of bounds becomes the bound; NaN stays, as in a minimum of a maximum."""

    def correct(self, values: Tensor, below: Tensor, above: Tensor) -> Tensor:
        return torch.clamp(values, below, above).to(values.dtype)


CLIP: Correction = _Clip()
ZERO: Correction = _Zero()
CLAMP: Correction = _Clamp()

# What users can choose between, by the names that they give.
CORRECTIONS: dict[str, Correction] = {"clip": CLIP, "zero": ZERO}


def _differ(changed: Tensor, values: Tensor) -> Tensor:
    """Whether each value is another one now; NaN that stayed is not."""
    changed, values = changed.detach(), values.detach()
    return (changed != values) & ~torch.isnan(changed)
