"""What a model computes with, cheaply compared: a test may change it for itself alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

__all__ = ["MODES_OF_THE_CALL", "UNCHANGING", "modes_of", "modules_of", "state_of"]

# So many modes, the first, are those of one call alone: they change hardly a digit.
MODES_OF_THE_CALL = 2
UNCHANGING = frozenset([bool, int, float, str, type(None)])
_PLAIN = frozenset([list, tuple, dict])
# What holds more, or is held deeper, is told by which it is.
_MANY, _DEPTH = 64, 6
# What torch keeps in every module, compared otherwise; and what transformers notes on the way.
_NOTES = {
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
    "_previous_max_cache_length",
}
_LEFT_OUT = (frozenset(vars(nn.Module())) | _NOTES) - {"training"}


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return all modules, each once, without their names: that takes a tenth of the time."""
    found = [model]
    known = set(found)
    for module in found:
        for child in module._modules.values():
            if child is not None and child not in known:
                known.add(child)
                found.append(child)
    return found


def modes_of(model: nn.Module) -> tuple[Any, ...]:
    """What outside the model its arithmetic depends on."""
    return (
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        getattr(getattr(model, "config", None), "_attn_implementation", None),
    )


def state_of(modules: list[nn.Module]) -> tuple[Any, ...]:
    """What a model's modules compute with, by what is equal as long as nothing was changed."""
    return _forwards(modules), _weights(modules), _attributes(modules)


def _forwards(modules: list[nn.Module]) -> list[int]:
    """The forwards of all modules' classes: a patched one is another function."""
    forwards = {kind: id(getattr(kind, "forward", None)) for kind in set(map(type, modules))}
    return [forwards[type(each)] for each in modules]


def _weights(modules: list[nn.Module]) -> tuple[Any, ...]:
    """Identity and version of all parameters and buffers."""
    found = []
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for each in tensors.values():
                if each is not None:
                    # Those made in inference mode count none; nothing may change them elsewhere.
                    version = -1 if each.is_inference() else each._version
                    found.append((id(each), each.data_ptr(), version))
    return tuple(found)


def _attributes(modules: list[nn.Module]) -> list[Any]:
    """What modules, and their configurations, are told by attributes of their own."""
    holders: dict[int, dict[str, Any]] = {}
    for module in modules:
        own = module.__dict__
        holders[id(module)] = own
        config = own.get("config")
        if isinstance(config, PreTrainedConfig):
            holders[id(config)] = config.__dict__
    return [
        (name, value if type(value) in UNCHANGING else _known(value))
        for own in holders.values()
        for name, value in own.items()
        if name not in _LEFT_OUT
    ]


def _known(value: Any, depth: int = _DEPTH) -> Any:
    """By what a value that may change is told from another: objects by which they are."""
    kind = type(value)
    if kind in UNCHANGING:
        return value
    if kind not in _PLAIN or not depth or len(value) > _MANY:
        return id(value)
    held = value.items() if kind is dict else value
    return [_known(each, depth - 1) for each in held]
