"""torch's random states, to be put back before a forward is computed again."""

from __future__ import annotations

import torch

__all__ = ["RandomStates"]


class RandomStates:
    """The states as they are, on the CPU and on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if self._device is not None else None

    def restore(self) -> None:
        """Let the states be these again."""
        torch.set_rng_state(self._cpu)
        if self._device is not None and self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
