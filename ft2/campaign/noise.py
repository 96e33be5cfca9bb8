"""Make a model talk noise, to see whether an assertion would notice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ft2.forward import Order, Tap, tap

__all__ = ["talk_noise"]


def talk_noise(model: nn.Module, seed: int) -> Tap:
    """Replace the model's logits by Gaussian noise, until the returned tap is removed.

    Raises
    ------
    ValueError
        If the model has no output embeddings, the layer whose output are the logits.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ValueError(
            f"{type(model).__name__} has no output embeddings, so ft2 cannot replace its logits"
        )
    return tap(head, Order.OBSERVE, _noise(seed))


def _noise(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    @torch.compiler.disable
    def noise(output: Tensor) -> Tensor:
        return torch.randn(output.shape, generator=generator).to(output)

    return noise
