"""A copy of a model that computes shapes and no numbers, to be looked at while it runs.

The copy's tensors are on the meta device: it takes no memory, and whatever its forward changes in
it (caches, buffers, statistics) leaves the model alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_opaque_linear", "replicate"]


def replicate(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device, without hooks and in evaluation mode.

    Linear modules that compute in a way of their own (quantised ones, say) need numbers to do so;
    in the copy a plain :class:`torch.nn.Linear` of the same sizes stands for each.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for each in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            memo.setdefault(id(each), _on_meta(each))
    replica = copy.deepcopy(model, memo)
    for module in list(replica.modules()):
        _forget_hooks(module)
        if isinstance(vars(module).get("forward"), FunctionType):
            module.forward = _rebound(vars(module)["forward"], memo)
        for name, child in module.named_children():
            if is_opaque_linear(child):
                setattr(module, name, _plain_linear(child))
    _avoid_fused_attention(replica)
    return replica.eval()


def is_opaque_linear(module: nn.Module) -> bool:
    """Whether `module` says that it is linear, and holds its weight in a form of its own."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not isinstance(rows, int) or not isinstance(columns, int) or _is_wrapper(module):
        return False
    weight: Any = getattr(module, "weight", None)
    is_plain = (
        type(weight) in (Tensor, nn.Parameter)
        and weight.shape in ((rows, columns), (columns, rows))
        and weight.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    )
    return not is_plain


def _is_wrapper(module: nn.Module) -> bool:
    """Whether the linear layer is inside (adapters wrap it, and say its sizes too)."""
    inner = (each for each in module.modules() if each is not module)
    return any(hasattr(each, "in_features") for each in inner)


def _on_meta(tensor: Tensor) -> Tensor:
    # A tensor subclass (quantised weights) need not have a form on the meta device.
    copied = torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta", requires_grad=False
    )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=False)
    return copied


def _forget_hooks(module: nn.Module) -> None:
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        getattr(module, hooks).clear()
    # A compiled forward belongs to the module that it was made from.
    if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
        del vars(module)["forward"]
    # accelerate moves inputs and weights between devices in a forward of its own.
    if hasattr(module, "_hf_hook"):
        original = vars(module).pop("_old_forward", None)
        vars(module).pop("forward", None)
        if original is not None and getattr(original, "__func__", None) is not type(module).forward:
            module.forward = original


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """A function that was set as a forward, speaking of the copies of the modules it speaks of."""
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _rebound(value.__self__, memo))
    if not isinstance(value, FunctionType):
        return value
    if id(value) in memo:
        return memo[id(value)]
    cells = tuple(CellType() for _ in value.__closure__ or ())
    rebound = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells or None)
    # A function can speak of itself.
    memo[id(value)] = rebound
    for cell, original in zip(cells, value.__closure__ or (), strict=True):
        with suppress(ValueError):
            cell.cell_contents = _rebound(original.cell_contents, memo)
    rebound.__defaults__ = tuple(_rebound(each, memo) for each in value.__defaults__ or ())
    named = value.__kwdefaults__ or {}
    rebound.__kwdefaults__ = {name: _rebound(each, memo) for name, each in named.items()}
    return rebound


def _plain_linear(module: Any) -> nn.Linear:
    return nn.Linear(module.in_features, module.out_features, bias=False, device="meta")


def _avoid_fused_attention(replica: nn.Module) -> None:
    """Fused attention kernels run on a device only; ``sdpa`` and ``eager`` run on every one."""
    choose: Callable[[str], None] | None = getattr(replica, "set_attn_implementation", None)
    chosen = getattr(getattr(replica, "config", None), "_attn_implementation", None)
    if choose is not None and chosen not in (None, "eager", "sdpa"):
        choose("eager")
