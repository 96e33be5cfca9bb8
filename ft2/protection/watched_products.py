"""Checksums of products with raw parameters, which experts and routers compute in a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ft2.forward import Clock, Vectors, fit_tokens
from ft2.layers import Projection
from ft2.protection.checksum import differing_products, roundoffs_of, summed_parameter

__all__ = ["WatchedProducts"]


class WatchedProducts:
    """Flags the rows of products that do not add up, each as it is computed, in plain torch.

    Parameters
    ----------
    model:
        The model.
    clock:
        The model's clock.
    """

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        self._model = model
        self._clock = clock
        self._sums: dict[tuple[str, bool], tuple[Any, Tensor]] = {}
        self._wrong: list[Tensor] = []

    def begin(self) -> None:
        """Forget what was flagged."""
        self._wrong.clear()

    def flagged(self) -> Tensor | None:
        """Return bool (rows,), on the CPU, of rows that are flagged; None if none is."""
        if not self._wrong:
            return None
        rows = torch.stack([each.cpu() for each in self._wrong]).any(0)
        self._wrong.clear()
        return rows if bool(rows.any()) else None

    def vectors(self, group: Sequence[Projection]) -> Callable[[Vectors], Tensor]:
        """Make the check of one parameter's products."""
        weight = str(group[0].weight)

        def check(vectors: Vectors) -> Tensor:
            if vectors.inputs is None:
                raise RuntimeError(
                    f"ft2-recompute cannot tell what {weight} is multiplied with, so it has no "
                    "checksum: use another protection"
                )
            parameter = self._model.get_parameter(weight)
            sums = self._sums_of(group[0], parameter, vectors.by_column)
            own = sums[:1] if vectors.experts is None else sums[vectors.experts]
            wrong = differing_products(vectors, own, roundoffs_of(parameter))
            self._note(wrong, vectors)
            return vectors.values

        return check

    def _note(self, wrong: Tensor, vectors: Vectors) -> None:
        forward = self._clock.forward
        if vectors.count % forward.rows:
            raise RuntimeError(
                f"ft2-recompute cannot tell the rows of {vectors.count} tokens in a forward over "
                f"{forward.rows} rows"
            )
        marks = torch.zeros(vectors.count, dtype=torch.int64, device=wrong.device)
        marks.index_add_(0, vectors.tokens.to(wrong.device), wrong.long())
        by_row = marks.view(forward.rows, -1) > 0
        if forward.real is not None:
            by_row = by_row & fit_tokens(forward.real, by_row.shape[1]).to(by_row.device)
        self._wrong.append(by_row.any(1))

    def _sums_of(self, projection: Projection, parameter: Tensor, by_column: bool) -> Tensor:
        name = str(projection.weight)
        version = 0 if parameter.is_inference() else parameter._version
        identity = (id(parameter), parameter.data_ptr(), version)
        known = self._sums.get((name, by_column))
        if known is None or known[0] != identity:
            with torch.inference_mode(False):
                sizes = (projection.in_features, projection.out_features)
                known = (identity, summed_parameter(parameter, *sizes, by_column))
            self._sums[name, by_column] = known
        return known[1]
