"""What a model is, read cheaply: to tell whether two runs ran the same one, and alike."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Identity", "identify"]

_ELEMENTS_READ = 4
# What tests and tokenizers set on the way, and what only says where the model came from.
_UNTELLING = ("use_cache", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class Identity:
    """What tells one model from another.

    Attributes
    ----------
    fingerprint:
        A hash of the class, the configuration, the parameters' names and shapes, and a few weights
        of each. Models that differ elsewhere have the same one.
    device, dtype:
        Names of where and in what precision the parameters are; several are joined.
    """

    fingerprint: str
    device: str
    dtype: str


def identify(model: nn.Module) -> Identity:
    """Identify a model; reads a few weights, whatever its size."""
    named = dict(model.named_parameters())
    # Weights that are elsewhere until their layer runs tell nothing of the device.
    here = [parameter for parameter in named.values() if not parameter.is_meta]
    config: Any = getattr(model, "config", None)
    facts = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "config": _telling(config.to_dict()) if hasattr(config, "to_dict") else None,
        "shapes": [(name, list(parameter.shape)) for name, parameter in named.items()],
        "weights": _few_weights(here),
    }
    text = json.dumps(facts, sort_keys=True, default=lambda value: type(value).__name__)
    return Identity(
        fingerprint=hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        device=_joined(_device_name(parameter.device) for parameter in here),
        dtype=_joined(str(parameter.dtype).removeprefix("torch.") for parameter in here),
    )


def _telling(config: dict[str, Any]) -> dict[str, Any]:
    return {
        str(name): value
        for name, value in config.items()
        if not str(name).startswith("_")
        and not str(name).endswith("_token_id")
        and name not in _UNTELLING
    }


def _few_weights(parameters: list[nn.Parameter]) -> list[list[float]]:
    """Read some elements of each parameter, waiting once for each device and dtype."""
    read: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        # Subclasses, such as a tensor spread over devices, may not be read by element.
        if type(parameter.data) is Tensor and parameter.numel():
            elements = read.setdefault((parameter.device, parameter.dtype), [])
            elements += [parameter.detach()[place] for place in _places(parameter)]
    return [torch.stack(elements).float().tolist() for elements in read.values()]


def _places(parameter: Tensor) -> Iterator[tuple[int, ...]]:
    """Yield indices from the first element to the last; flattening could copy the whole."""
    last = parameter.numel() - 1
    for part in range(_ELEMENTS_READ):
        rest = last * part // (_ELEMENTS_READ - 1)
        place: list[int] = []
        for size in reversed(parameter.shape):
            rest, index = divmod(rest, size)
            place.insert(0, index)
        yield tuple(place)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() if device.type == "cpu" else device.type


def _joined(names: Iterator[str]) -> str:
    return " + ".join(sorted(set(names))) or "unknown"
