"""The random states of Python, numpy and torch: set, kept and put back."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch

__all__ = ["preserved_randomness", "seed_everything"]


def seed_everything(seed: int, name: str) -> None:
    """Set every random state to one that `seed` and `name` determine."""
    digest = blake2b(f"{seed}\n{name}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    random.seed(number)
    np.random.seed(number % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(number % 2**63)
    else:
        # The other way formats a traceback for each kind of device that is not there.
        torch.default_generator.manual_seed(number % 2**63)


@contextmanager
def preserved_randomness() -> Generator[None, None, None]:
    """Leave every random state as it was."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
