"""What outcomes may depend on besides the model, the test and the faults."""

from __future__ import annotations

import platform

import torch
import transformers

from ft2.campaign import Golden
from pytest_ft2.plan import Payload

__all__ = ["environment"]


def environment(golden: Golden) -> Payload:
    """Return the environment that a golden run ran in."""
    return {
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "python": platform.python_version(),
        "device": golden.model.device,
        "dtype": golden.model.dtype,
        "threads": torch.get_num_threads(),
    }
