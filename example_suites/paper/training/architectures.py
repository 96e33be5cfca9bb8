"""The seven miniatures: the architectures of the paper's models (FT2, Table 2), each small.

What is theirs is the class, the kinds of layers and, roughly, the proportions: heads to key-value
heads, feed-forward to hidden size. Shape and seed are each one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    GPTJConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

__all__ = ["MINIATURES", "Miniature"]

_READING = ("squad", "xtreme")
_ALL_TASKS = (*_READING, "gsm8k")

# More than a prompt of any task and 180 new tokens.
_POSITIONS = 320


@dataclass(frozen=True)
class Miniature:
    """A small model that stands for one of the paper's.

    Attributes
    ----------
    name:
        The paper's name, and ``-mini``.
    tasks:
        The tasks that Table 2 of the paper gives the model.
    seed:
        The seed of its initial weights, and of the order it sees the questions in.
    config:
        Makes its configuration, given the settings of the vocabulary.
    """

    name: str
    tasks: tuple[str, ...]
    seed: int
    config: Callable[..., PreTrainedConfig]


def _opt(hidden: int, heads: int, layers: int) -> Callable[..., PreTrainedConfig]:
    def config(**vocabulary: Any) -> PreTrainedConfig:
        return OPTConfig(
            hidden_size=hidden,
            word_embed_proj_dim=hidden,
            ffn_dim=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=_POSITIONS,
            dropout=0.0,
            init_std=_INITIAL_DEVIATION,
            **vocabulary,
        )

    return config


def _gptj(hidden: int, heads: int, layers: int, rotary: int) -> Callable[..., PreTrainedConfig]:
    def config(**vocabulary: Any) -> PreTrainedConfig:
        return GPTJConfig(
            n_embd=hidden,
            n_layer=layers,
            n_head=heads,
            n_positions=_POSITIONS,
            rotary_dim=rotary,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=_INITIAL_DEVIATION,
            tie_word_embeddings=False,
            **vocabulary,
        )

    return config


def _llama(
    hidden: int, heads: int, layers: int, feed_forward: int
) -> Callable[..., PreTrainedConfig]:
    def config(**vocabulary: Any) -> PreTrainedConfig:
        return LlamaConfig(
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=_POSITIONS,
            rope_parameters=dict(_ROTATIONS),
            initializer_range=_INITIAL_DEVIATION,
            tie_word_embeddings=False,
            **vocabulary,
        )

    return config


def _qwen2(
    hidden: int, heads: tuple[int, int], layers: int, feed_forward: int, *, tied: bool
) -> Callable[..., PreTrainedConfig]:
    def config(**vocabulary: Any) -> PreTrainedConfig:
        return Qwen2Config(
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads[0],
            num_key_value_heads=heads[1],
            max_position_embeddings=_POSITIONS,
            rope_parameters=dict(_ROTATIONS),
            initializer_range=_INITIAL_DEVIATION,
            tie_word_embeddings=tied,
            **vocabulary,
        )

    return config


# The base of Qwen2. With Llama 2's 10,000 a head of 32 numbers has few left that do not turn within
# a passage, and a model learns slowly to tell what it says from where.
_ROTATIONS = {"rope_type": "default", "rope_theta": 1e6}

# Wider than transformers' 0.02, which suits a hidden size of thousands.
_INITIAL_DEVIATION = 0.05

MINIATURES: dict[str, Miniature] = {
    miniature.name: miniature
    for miniature in (
        Miniature("opt-6.7b-mini", _READING, 67, _opt(160, 5, 4)),
        Miniature("opt-2.7b-mini", _READING, 27, _opt(128, 4, 4)),
        Miniature("gptj-6b-mini", _READING, 60, _gptj(128, 4, 5, rotary=16)),
        Miniature("llama2-7b-mini", _ALL_TASKS, 70, _llama(160, 5, 4, 432)),
        Miniature("vicuna-7b-mini", _READING, 15, _llama(128, 4, 5, 344)),
        Miniature("qwen2-7b-mini", _ALL_TASKS, 76, _qwen2(192, (6, 2), 4, 720, tied=False)),
        Miniature("qwen2-1.5b-mini", _READING, 25, _qwen2(128, (4, 2), 4, 480, tied=True)),
    )
}
