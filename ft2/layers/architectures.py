"""The linear projections of the decoder blocks of the architectures that are supported.

Criticality follows the heuristic of FT2, section 4.1.2 (Table 1): a layer is critical if no
scaling operation or activation stands between it and the next linear layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from ft2.layers.model import unwrap
from ft2.layers.projection import Projection

__all__ = ["UnsupportedModelError", "projections"]


class UnsupportedModelError(ValueError):
    """The model's architecture is not known, or no projection was found in it."""


@dataclass(frozen=True)
class _Role:
    critical: bool
    reason: str


_QUERY = _Role(False, "the query is scaled and goes through the softmax before the next linear")
_KEY = _Role(False, "the key is scaled and goes through the softmax before the next linear")
_VALUE = _Role(True, "the value reaches the output projection through a weighted sum only")
_ATTENTION_OUT = _Role(True, "joins the residual stream with no activation after it")
_BEFORE_ACTIVATION = _Role(False, "an activation follows it")
_GATE = _Role(False, "an activation follows it; its product with up goes on")
_UP = _Role(True, "multiplied by the activated gate, with no activation of its own")
_MLP_OUT = _Role(True, "joins the residual stream with no activation after it")

# Paths inside one decoder block, in forward order; several roles split the output evenly.
_GATED: dict[str, tuple[_Role, ...]] = {
    "self_attn.q_proj": (_QUERY,),
    "self_attn.k_proj": (_KEY,),
    "self_attn.v_proj": (_VALUE,),
    "self_attn.o_proj": (_ATTENTION_OUT,),
    "mlp.gate_proj": (_GATE,),
    "mlp.up_proj": (_UP,),
    "mlp.down_proj": (_MLP_OUT,),
}
_ARCHITECTURES: dict[str, dict[str, tuple[_Role, ...]]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "opt": {
        "self_attn.q_proj": (_QUERY,),
        "self_attn.k_proj": (_KEY,),
        "self_attn.v_proj": (_VALUE,),
        "self_attn.out_proj": (_ATTENTION_OUT,),
        "fc1": (_BEFORE_ACTIVATION,),
        "fc2": (_MLP_OUT,),
    },
    "gptj": {
        "attn.q_proj": (_QUERY,),
        "attn.k_proj": (_KEY,),
        "attn.v_proj": (_VALUE,),
        "attn.out_proj": (_ATTENTION_OUT,),
        "mlp.fc_in": (_BEFORE_ACTIVATION,),
        "mlp.fc_out": (_MLP_OUT,),
    },
    "gpt2": {
        "attn.c_attn": (_QUERY, _KEY, _VALUE),
        "attn.c_proj": (_ATTENTION_OUT,),
        "mlp.c_fc": (_BEFORE_ACTIVATION,),
        "mlp.c_proj": (_MLP_OUT,),
    },
}

_IN_A_BLOCK = re.compile(r"(?P<block>(?:.*\.)?(?:layers|h)\.(?P<index>\d+))\.(?P<path>.+)")


def projections(model: nn.Module) -> list[Projection]:
    """List the linear projections of the model's decoder blocks, in forward order.

    Parameters
    ----------
    model:
        A causal language model of transformers, or what ``torch.compile`` made of one.

    Returns
    -------
    list of Projection
        Every linear projection of the decoder blocks. Embeddings and ``lm_head`` are not among
        them.

    Raises
    ------
    TypeError
        If `model` is not a module.
    UnsupportedModelError
        If the architecture is not known or none of its projections is there.
    """
    model = unwrap(model)
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    paths = _ARCHITECTURES.get(model_type)
    if paths is None:
        raise UnsupportedModelError(
            f"ft2 does not know the layers of a {model_type!r} model ({type(model).__name__}); "
            f"it knows {', '.join(sorted(_ARCHITECTURES))}"
        )
    order = {path: position for position, path in enumerate(paths)}
    found: list[tuple[int, int, Projection]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        match = _IN_A_BLOCK.fullmatch(name)
        if match is None or match["path"] not in order:
            continue
        path = match["path"]
        projection = _describe(name, module, paths[path])
        found.append((int(match["index"]), order[path], projection))
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise UnsupportedModelError(
            f"no linear projection was found in the decoder blocks of this {model_type!r} model; "
            f"it is made of {', '.join(kinds)}"
        )
    return [projection for _, _, projection in sorted(found, key=lambda entry: entry[:2])]


def _describe(name: str, module: nn.Module, roles: tuple[_Role, ...]) -> Projection:
    weight = getattr(module, "weight", None)
    out_features = int(getattr(module, "out_features", 0) or getattr(module, "nf", 0))
    if not isinstance(weight, Tensor) or not out_features:
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__}, whose weight ft2 cannot read: it knows linear "
            "layers with a tensor for a weight"
        )
    share = out_features // len(roles)
    return Projection(
        name=name,
        kind=name.rpartition(".")[2],
        critical=any(role.critical for role in roles),
        columns=tuple(
            (part * share, (part + 1) * share, role.critical) for part, role in enumerate(roles)
        ),
        reason="; ".join(role.reason for role in roles),
        in_features=weight.numel() // out_features,
        out_features=out_features,
    )
