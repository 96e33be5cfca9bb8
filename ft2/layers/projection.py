"""What is known of one linear projection of a decoder block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Projection", "role_of"]

_ADAPTERS = frozenset(["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"])


@dataclass(frozen=True)
class Projection:
    """One linear projection of a decoder block.

    Attributes
    ----------
    name:
        The path of its module, as ``named_modules`` spells it; of its parameter, where a module
        multiplies with a raw one, followed by the number of the expert, where it holds several.
    kind:
        The part of the path that names its role in the block (``v_proj``, ``fc2``).
    critical:
        Whether any of its output columns is critical: no scaling operation and no activation
        stands between it and the next linear layer (FT2, section 4.1.2).
    columns:
        ``(start, stop, critical)`` ranges over the last dimension of the output; one range for a
        plain layer, several for a fused one.
    reason:
        Why it is critical or not, in words.
    in_features, out_features:
        Sizes of the last dimension of its input and its output.
    module:
        The path of the module that returns its output, or inside which it is computed.
    weight:
        The path of its parameter where the output is not what the module returns; else None.
    expert:
        Which of the parameter's matrices it is, where that holds several; else None.
    values:
        ``(start, stop)`` ranges of the columns that attention weighs and sums.
    ends:
        What it is the last projection of: ``attention``, ``mlp``, or None
        (:mod:`ft2.layers.roles`).
    """

    name: str
    kind: str
    critical: bool
    columns: tuple[tuple[int, int, bool], ...]
    reason: str
    in_features: int
    out_features: int
    module: str
    weight: str | None = None
    expert: int | None = None
    values: tuple[tuple[int, int], ...] = ()
    ends: Literal["attention", "mlp"] | None = None


def role_of(path: str) -> str:
    """Return the part of a module's or parameter's path that names its role in the block.

    Numbers name experts and groups, and ``weight`` and ``base_layer`` what every layer has; what
    comes after an adapter's matrix is only the adapter's name.
    """
    parts = path.split(".")
    adapters = [part for part in parts if part in _ADAPTERS]
    if adapters:
        return adapters[-1]
    named = [part for part in parts if part not in ("weight", "base_layer") and not part.isdigit()]
    return named[-1] if named else path
