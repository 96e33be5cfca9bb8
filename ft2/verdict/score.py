"""A score that tells from a fault's cell how likely it is an SDC, learned from trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from ft2.verdict.cells import Cell

__all__ = ["cell_features", "learned_chances"]

# Where the effect of a change's size may bend, in powers of two.
_BENDS = (-8, -5, -2, 1, 4, 8)
_SCALE = 8.0
# Kinds of layers differ in how sizes matter up to that.
_LARGEST = 6
# The Gaussian prior's precision on each coefficient but the first.
_RIDGE = 1.0


def learned_chances(
    features: NDArray[np.float64], trials: NDArray[Any], events: NDArray[Any]
) -> NDArray[np.float64]:
    """Learn from trials how likely a fault in each cell is an SDC.

    A logistic regression on what cells have in common: its posterior mode under a Gaussian prior.

    Parameters
    ----------
    features:
        What is known of the cells (:func:`cell_features`), shape (cells, features).
    trials, events:
        Of each cell the trials, and the SDCs among them, shape (cells,).

    Returns
    -------
    array
        The chance in each cell, tried or not, shape (cells,).
    """
    tried = features[trials > 0]
    trials, events = trials[trials > 0], events[trials > 0]
    precision = np.full(features.shape[1], _RIDGE)
    precision[0] = 0.0
    start = np.zeros(features.shape[1])
    start[0] = np.log((events.sum() + 0.5) / (trials.sum() - events.sum() + 0.5))

    def loss(coefficients: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = tried @ coefficients
        doubt = (trials * np.logaddexp(0, logits) - events * logits).sum()
        slope = tried.T @ (trials * expit(logits) - events) + precision * coefficients
        return float(doubt + (precision * coefficients**2).sum() / 2), slope

    def curvature(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        chances = expit(tried @ coefficients)
        weights = trials * chances * (1 - chances)
        return np.asarray((tried * weights[:, None]).T @ tried + np.diag(precision))

    found: Any = minimize(loss, start, jac=True, hess=curvature, method="trust-exact")
    return np.asarray(expit(features @ found.x))


def cell_features(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Return what cells have in common: the change's size, the top bit, the phase, the kind.

    Returns
    -------
    array
        Shape (cells, features).
    """
    sizes = np.array([cell.size for cell in cells], dtype=float)
    bends = [np.maximum(sizes - bend, 0) / _SCALE for bend in _BENDS]
    clipped = np.clip(sizes, -_LARGEST, _LARGEST) / _LARGEST
    top = np.array([cell.top for cell in cells], dtype=float)
    first = np.array([cell.phase == "first" for cell in cells], dtype=float)
    kinds = np.array([cell.kind for cell in cells])
    of_kind = [(kinds == kind).astype(float) for kind in sorted(set(kinds.tolist()))]
    return np.stack(
        [
            np.ones(len(cells)),
            sizes / _SCALE,
            *bends,
            top,
            first,
            first * clipped,
            *of_kind,
            *(each * clipped for each in of_kind),
        ],
        axis=1,
    )
