"""A small, seeded configuration of every architecture that transformers registers as causal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["ARCHITECTURES", "Architecture", "prompt", "small_config", "small_model"]

_VOCABULARY = 64

# What every configuration class gets of these, where it has a field of that name.
_COMMON: dict[str, Any] = {
    # tokens
    "vocab_size": _VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 3,
    "eod_token_id": 3,
    "cls_token_id": 3,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    # the decoder
    "is_decoder": True,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    # attention
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "attention_heads": 4,
    "head_dim": 8,
    "rotary_dim": 4,
    "sliding_window": 4,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "index_topk": 4,
    "index_head_dim": 8,
    "index_n_heads": 8,
    # experts
    "moe_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    # state spaces and linear attention
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_chunk_size": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "use_mamba_kernels": False,
}


@dataclass(frozen=True)
class Architecture:
    """How to build one architecture small, and what it can and cannot do."""

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    spread: float = 0.35
    embedding: float = 1.0
    unsupported: str | None = None
    note: str | None = None
    cache_only: str | None = None
    same_without_cache: bool = True


_DRAFT = (
    "A draft model: it reads the hidden states and the keys of its target, and transformers "
    "refuses to build it without keys of its own."
)
_SOUND = (
    "Its causal class takes another configuration than the one it is registered with, and it "
    "writes parallel streams of sound, not text."
)
_FLOAT32 = "It fails in half precision, where it mixes types."
_ENCODER = "An encoder: is_decoder makes it read from left to right."
_LATENT = {"num_key_value_heads": 4}
_GROUPS = {"n_group": 2, "topk_group": 1}
_DENSE_THEN_SPARSE = {"mlp_layer_types": ["dense", "sparse"]}
_WINDOW_THEN_FULL = {"layer_types": ["sliding_attention", "full_attention"]}
_LINEAR_THEN_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_FULL_THEN_WINDOW = {"layer_types": ["full_attention", "sliding_attention"]}
# A pass with cache does not clamp the time step from below, one without does.
_NO_CLAMP = {"time_step_min": 1e-6, "time_step_floor": 1e-6}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_DOTS3_TEXT = {
    **_LATENT,
    **_GROUPS,
    **_DENSE_THEN_SPARSE,
    "layer_types": ["indexed_attention", "sliding_attention"],
    "shared_experts_intermediate_size": 24,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 12,
    "swa_v_head_dim": 8,
}
_LLAMA4_TEXT = {
    "intermediate_size_mlp": 48,
    "moe_layers": [1],
    "no_rope_layers": [1, 0],
    "attention_chunk_size": 4,
}
_QWEN4_TEXT = {
    "layer_types": ["linear_attention", "indexed_attention"],
    "hc_count": 2,
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 32,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}
_GEMMA3N_TEXT = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2,
    "laurel_rank": 8,
}
_GEMMA4_TEXT = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
}
_GEMMA4_MIXED = {
    **_GEMMA4_TEXT,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "enable_moe_block": True,
    "top_k_experts": 2,
}
_GEMMA4_TOKENS = {
    "boi_token_id": 58,
    "eoi_token_id": 59,
    "image_token_id": 60,
    "video_token_id": 61,
    "boa_token_id": 62,
    "eoa_token_index": 63,
    "audio_token_id": 57,
}
_GEMMA4_DRAFT = {
    "model_type": "gemma4_text",
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "global_head_dim": 16,
}

_ALL = (
    Architecture("afmoe", {"num_dense_layers": 1, **_WINDOW_THEN_FULL}),
    Architecture("apertus"),
    Architecture("arcee"),
    Architecture("aria_text", {"moe_num_experts": 4, "moe_num_shared_experts": 1}),
    Architecture("axk1", {**_LATENT, **_GROUPS, **_DENSE_THEN_SPARSE}),
    Architecture("axk2", {**_LATENT, **_GROUPS, **_DENSE_THEN_SPARSE, "gated_norm_rank": 4}),
    Architecture(
        "bailing_hybrid",
        {**_LATENT, **_GROUPS, **_LINEAR_THEN_FULL, **_DENSE_THEN_SPARSE, "num_mtp_layers": 0},
    ),
    Architecture("bamba", {"attn_layer_indices": [1]}),
    Architecture("bart", {"tie_word_embeddings": False}, spread=0.1, embedding=3),
    Architecture("beam", {**_GROUPS, **_WINDOW_THEN_FULL, **_DENSE_THEN_SPARSE}),
    Architecture("bert", spread=0.2, embedding=10, note=_ENCODER),
    Architecture("bert-generation", spread=1.0, note=_ENCODER),
    Architecture("big_bird", spread=0.1, note=_ENCODER),
    Architecture("bigbird_pegasus"),
    Architecture("biogpt"),
    Architecture("bitnet"),
    Architecture("blenderbot"),
    Architecture("blenderbot-small", {"tie_word_embeddings": False}, spread=0.1),
    Architecture("bloom", spread=0.6),
    Architecture(
        "blt",
        {
            "vocab_size": 64,
            "num_hidden_layers": 2,
            "patching_threshold": 0.5,
            "local_attention_window_len": 4,
            "encoder_hash_byte_group_vocab": 64,
            "encoder_hash_byte_group_size": [3, 4],
            "patcher_config": {},
            "encoder_config": {"hidden_size_global": 32},
            "decoder_config": {"hidden_size_global": 32},
            "global_config": {},
        },
        same_without_cache=False,
        note="With a cache its patches are cut from the last byte alone.",
    ),
    Architecture("camembert", note=_ENCODER),
    Architecture("codegen", {"n_ctx": 64}),
    Architecture("cohere"),
    Architecture("cohere2", _WINDOW_THEN_FULL),
    Architecture("cohere2_moe", {**_WINDOW_THEN_FULL, **_DENSE_THEN_SPARSE}),
    Architecture(
        "cohere_compass_text",
        {
            **_WINDOW_THEN_FULL,
            "rope_parameters": {
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 1, 1],
                },
                "full_attention": None,
            },
        },
    ),
    Architecture(
        "cpmant",
        {
            "dim_head": 8,
            "dim_ff": 48,
            "position_bias_num_buckets": 16,
            "position_bias_max_distance": 64,
            "prompt_types": 4,
            "prompt_length": 4,
            "segment_types": 4,
        },
        embedding=10,
        same_without_cache=False,
        note="Its prompt reads in both directions, without a cache also what was generated.",
    ),
    Architecture("ctrl", {"dff": 48}, spread=0.6, embedding=0.3),
    Architecture("cwm", _WINDOW_THEN_FULL),
    Architecture("data2vec-text", spread=0.2, embedding=10, note=_ENCODER),
    Architecture(
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    Architecture(
        "deepseek_v2",
        {**_LATENT, **_GROUPS, "first_k_dense_replace": 1, "topk_method": "group_limited_greedy"},
    ),
    Architecture("deepseek_v3", {**_LATENT, **_GROUPS, "first_k_dense_replace": 1}),
    Architecture("deepseek_v32", {**_LATENT, **_GROUPS, **_DENSE_THEN_SPARSE}),
    Architecture(
        "deepseek_v4",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
            "hc_mult": 2,
            "o_groups": 2,
            "o_lora_rank": 8,
        },
    ),
    Architecture("diffllama"),
    Architecture(
        "doge",
        {"sliding_window": None, "keep_window_size": 4},
        note="Without its experts, whose router lets a token see later ones.",
    ),
    Architecture("dots1", {"first_k_dense_replace": 1, **_WINDOW_THEN_FULL}),
    Architecture(
        "dots3_note",
        {
            "text_config": _DOTS3_TEXT,
            "vision_config": {
                "adapter_out_dim": 32,
                "adapter_in_dim": 32,
                "mlp_layer_types": ["dense", "dense"],
            },
            "audio_config": {"adapter_out_dim": 32, "adapter_input_size": 32},
        },
    ),
    Architecture("dots3_note_text", _DOTS3_TEXT),
    Architecture("electra", {"embedding_size": 16}, note=_ENCODER),
    Architecture(
        "emu3",
        {
            "text_config": {},
            "vq_config": {"hidden_size": 16, "base_channels": 16, "codebook_size": 8},
        },
    ),
    Architecture("ernie", spread=0.2, embedding=10, note=_ENCODER),
    Architecture("ernie4_5"),
    Architecture("ernie4_5_moe", {"moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}),
    Architecture("exaone4", _WINDOW_THEN_FULL),
    Architecture("exaone_moe", {**_WINDOW_THEN_FULL, **_DENSE_THEN_SPARSE}),
    Architecture("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, spread=0.6),
    Architecture("falcon_h1", {"mamba_d_ssm": 64}),
    Architecture("falcon_mamba"),
    Architecture("flex_olmo"),
    Architecture("flint", {**_WINDOW_THEN_FULL, "mlp_only_layers": [0]}),
    Architecture(
        "fuyu",
        {
            "patch_size": 2,
            "image_token_id": 60,
            "text_config": {"model_type": "persimmon"},
        },
    ),
    Architecture("gemma"),
    Architecture("gemma2", _WINDOW_THEN_FULL, spread=1.0, embedding=0.05),
    Architecture(
        "gemma3",
        {
            "text_config": _WINDOW_THEN_FULL,
            "vision_config": _SIGLIP,
            "mm_tokens_per_image": 4,
            "boi_token_index": 60,
            "eoi_token_index": 61,
            "image_token_index": 62,
        },
        embedding=0.05,
    ),
    Architecture("gemma3_text", _WINDOW_THEN_FULL, spread=0.2, embedding=0.05),
    Architecture(
        "gemma3n",
        {"text_config": _GEMMA3N_TEXT},
        unsupported="Its vision tower is a model of timm, which this project does not depend on.",
    ),
    Architecture("gemma3n_text", _GEMMA3N_TEXT),
    Architecture(
        "gemma4",
        {
            "text_config": _GEMMA4_MIXED,
            "vision_config": {
                "num_hidden_layers": 1,
                "patch_size": 2,
                "position_embedding_size": 8,
            },
            "audio_config": {
                "num_hidden_layers": 1,
                "subsampling_conv_channels": [4, 4],
                "output_proj_dims": 32,
            },
            **_GEMMA4_TOKENS,
        },
        embedding=0.05,
    ),
    Architecture(
        "gemma4_assistant",
        {"text_config": _GEMMA4_DRAFT, "backbone_hidden_size": 32},
        unsupported=_DRAFT,
    ),
    Architecture("gemma4_text", _GEMMA4_MIXED, spread=0.2, embedding=0.05),
    Architecture(
        "gemma4_unified",
        {
            "text_config": _GEMMA4_TEXT,
            "vision_config": {
                "patch_size": 2,
                "mm_embed_dim": 32,
                "mm_posemb_size": 8,
                "output_proj_dims": 32,
            },
            "audio_config": {"audio_embed_dim": 16},
            **_GEMMA4_TOKENS,
        },
        spread=0.2,
        embedding=0.05,
    ),
    Architecture(
        "gemma4_unified_assistant",
        {
            "text_config": {
                "model_type": "gemma4_unified_text",
                "num_kv_shared_layers": 2,
                "global_head_dim": 16,
                **_WINDOW_THEN_FULL,
            },
            "backbone_hidden_size": 32,
        },
        unsupported=_DRAFT,
    ),
    Architecture("gemma4_unified_text", _GEMMA4_TEXT, spread=0.2, embedding=0.05),
    Architecture(
        "git",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            }
        },
    ),
    Architecture("glm"),
    Architecture("glm4"),
    Architecture("glm4_moe", {**_GROUPS, "first_k_dense_replace": 1}),
    Architecture("glm4_moe_lite", {**_LATENT, **_GROUPS, **_DENSE_THEN_SPARSE}),
    Architecture(
        "glm_moe_dsa",
        {**_LATENT, **_GROUPS, **_DENSE_THEN_SPARSE, "indexer_types": ["full", "shared"]},
    ),
    Architecture(
        "got_ocr2",
        {
            "text_config": {"model_type": "qwen2"},
            "vision_config": {
                "hidden_size": 16,
                "output_channels": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "window_size": 2,
                "global_attn_indexes": [0],
                "mlp_dim": 16,
            },
            "image_token_index": 60,
            "image_seq_length": 4,
        },
    ),
    Architecture("gpt-sw3"),
    Architecture("gpt2"),
    Architecture("gpt_bigcode"),
    Architecture("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 4}),
    Architecture("gpt_neox", spread=0.2, embedding=10),
    Architecture("gpt_neox_japanese", {"intermediate_multiple_size": 2}),
    Architecture("gpt_oss", _WINDOW_THEN_FULL),
    Architecture("gptj"),
    Architecture("granite"),
    Architecture("granite_swa", _FULL_THEN_WINDOW),
    Architecture("granitemoe"),
    Architecture("granitemoe_swa", _FULL_THEN_WINDOW),
    Architecture("granitemoehybrid", _LINEAR_THEN_FULL),
    Architecture("granitemoeshared"),
    Architecture("helium"),
    Architecture("hrm_text", {"H_cycles": 2, "L_cycles": 2, "num_hidden_layers": 1}),
    Architecture("hunyuan_v1_dense"),
    Architecture("hunyuan_v1_moe", {"moe_topk": 2}),
    Architecture("hy_v3", _DENSE_THEN_SPARSE),
    Architecture(
        "hy_v4",
        {
            **_LATENT,
            **_GROUPS,
            **_DENSE_THEN_SPARSE,
            "indexer_types": ["full", "shared"],
            "hc_mult": 2,
        },
    ),
    Architecture("hyperclovax"),
    Architecture(
        "inkling2_text",
        {
            "layer_types": ["hybrid_sliding", "hybrid"],
            "unpadded_vocab_size": 64,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": 4,
            "d_rel": 4,
            "rel_extent": 16,
        },
        note=_FLOAT32,
    ),
    Architecture(
        "inkling_text",
        {
            "layer_types": ["hybrid_sliding", "hybrid"],
            **_DENSE_THEN_SPARSE,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": 4,
            "d_rel": 4,
            "rel_extent": 16,
        },
    ),
    Architecture("internlm3"),
    Architecture("iquestcoder"),
    Architecture("jais2"),
    Architecture(
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    Architecture("jetmoe", {"kv_channels": 8}),
    Architecture(
        "kimi_linear",
        {
            **_LATENT,
            **_GROUPS,
            **_LINEAR_THEN_FULL,
            **_DENSE_THEN_SPARSE,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
        },
    ),
    Architecture("kolibri1", _WINDOW_THEN_FULL),
    Architecture("laguna", {**_WINDOW_THEN_FULL, **_DENSE_THEN_SPARSE}),
    Architecture(
        "lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    ),
    Architecture("lfm2_moe", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    Architecture(
        "lfm3",
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "sliding_attention", "full_attention"],
            "conv_L_cache": 3,
        },
    ),
    Architecture("llama"),
    Architecture(
        "llama4",
        {
            "text_config": _LLAMA4_TEXT,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vision_output_dim": 16,
                "image_size": 16,
                "patch_size": 4,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
            "boi_token_index": 60,
            "eoi_token_index": 61,
            "image_token_index": 62,
        },
    ),
    Architecture("llama4_text", _LLAMA4_TEXT),
    Architecture(
        "longcat_flash",
        {
            **_LATENT,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 24,
            "moe_topk": 2,
            "zero_expert_num": 2,
            "head_dim": 4,
        },
    ),
    Architecture("mamba"),
    Architecture("mamba2", {"head_dim": 16, "n_groups": 2, "chunk_size": 4}),
    Architecture("marian", {"tie_word_embeddings": False}, spread=0.2, embedding=10),
    Architecture("mbart"),
    Architecture("megatron-bert", embedding=10, note=_ENCODER),
    Architecture("mellum", {**_WINDOW_THEN_FULL, **_DENSE_THEN_SPARSE}),
    Architecture(
        "mimo_v2_flash", {**_FULL_THEN_WINDOW, **_DENSE_THEN_SPARSE, **_GROUPS}, spread=0.6
    ),
    Architecture("minicpm3", {**_LATENT, "dim_model_base": 16}),
    Architecture("minimax", {**_LINEAR_THEN_FULL, "block_size": 4, "sliding_window": None}),
    Architecture("minimax_m2"),
    Architecture(
        "minimax_m3_vl_text",
        {
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            **_DENSE_THEN_SPARSE,
            "dense_intermediate_size": 48,
            "index_n_heads": 2,
            "index_block_size": 2,
            "index_topk_blocks": 2,
        },
    ),
    Architecture("ministral", _WINDOW_THEN_FULL),
    Architecture("ministral3"),
    Architecture("mistral"),
    Architecture("mixtral"),
    Architecture(
        "mllama",
        {
            "text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "attention_heads": 2,
                "vision_output_dim": 32,
                "image_size": 8,
                "patch_size": 4,
                "intermediate_layers_indices": [0],
            },
            "image_token_index": 60,
        },
        note="Text alone skips its cross-attention layers.",
    ),
    Architecture("modernbert-decoder", {**_FULL_THEN_WINDOW, "local_attention": 8}),
    Architecture(
        "moshi",
        {"sliding_window": 64},
        note="Its window is long, since past it the cache slides and the mask does not.",
    ),
    Architecture(
        "moss_transcribe_diarize",
        {
            "text_config": {"model_type": "qwen3"},
            "audio_config": {
                "num_mel_bins": 4,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_source_positions": 8,
            },
            "audio_token_id": 60,
        },
    ),
    Architecture("mpt"),
    Architecture(
        "musicgen",
        unsupported=_SOUND,
    ),
    Architecture(
        "musicgen_melody",
        unsupported=_SOUND,
    ),
    Architecture("mvp", {"tie_word_embeddings": False}, spread=0.1, embedding=3),
    Architecture("nanochat"),
    Architecture("nemotron"),
    Architecture(
        "nemotron_h",
        {
            **_NO_CLAMP,
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "moe_shared_expert_intermediate_size": 24,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 4,
            **_GROUPS,
        },
    ),
    Architecture("olmo"),
    Architecture("olmo2"),
    Architecture("olmo3", _WINDOW_THEN_FULL),
    Architecture("olmo_hybrid", _LINEAR_THEN_FULL),
    Architecture("olmoe"),
    Architecture("openai-gpt"),
    Architecture("opt", {"word_embed_proj_dim": 16}, embedding=10),
    Architecture("pegasus", spread=0.6, embedding=3),
    Architecture("persimmon", spread=0.1, embedding=10),
    Architecture("phi"),
    Architecture("phi3"),
    Architecture(
        "phi4_multimodal",
        {
            "original_max_position_embeddings": 64,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "crop_size": 8,
                "patch_size": 4,
                "image_token_id": 60,
            },
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 2,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "depthwise_separable_out_channel": 16,
                "input_size": 8,
                "nemo_conv_channels": 4,
                "audio_token_id": 61,
            },
        },
    ),
    Architecture("phimoe"),
    Architecture("plbart", {"tie_word_embeddings": False}, spread=0.1, embedding=0.3),
    Architecture(
        "prophetnet",
        {
            "num_encoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_layers": 2,
            "num_decoder_attention_heads": 4,
        },
        same_without_cache=False,
        note="Its relative positions of predicted tokens are mixed up among tokens and heads.",
    ),
    Architecture("qwen2", {**_WINDOW_THEN_FULL, "use_sliding_window": True}),
    Architecture("qwen2_moe", {"mlp_only_layers": [0]}),
    Architecture("qwen3", {**_WINDOW_THEN_FULL, "use_sliding_window": True}),
    Architecture("qwen3_5", {"text_config": _LINEAR_THEN_FULL, "vision_config": _QWEN_VISION}),
    Architecture("qwen3_5_moe", {"text_config": _LINEAR_THEN_FULL, "vision_config": _QWEN_VISION}),
    Architecture("qwen3_5_moe_text", _LINEAR_THEN_FULL),
    Architecture("qwen3_5_text", _LINEAR_THEN_FULL),
    Architecture("qwen3_moe", {"mlp_only_layers": [0]}),
    Architecture("qwen3_next", {**_LINEAR_THEN_FULL, "mlp_only_layers": [0]}),
    Architecture("qwen4_exp", {"text_config": _QWEN4_TEXT, "vision_config": _QWEN_VISION}),
    Architecture("qwen4_exp_text", _QWEN4_TEXT),
    Architecture(
        "recurrent_gemma",
        {"block_types": ("recurrent", "attention"), "attention_window_size": 4},
        embedding=0.1,
    ),
    Architecture(
        "reformer",
        {
            "attn_layers": ["local", "lsh"],
            "attention_head_size": 8,
            "feed_forward_size": 48,
            "axial_pos_shape": (8, 8),
            "axial_pos_embds_dim": (16, 16),
            "local_attn_chunk_length": 16,
            "lsh_attn_chunk_length": 16,
            "num_buckets": 4,
            "hash_seed": 0,
        },
        spread=0.2,
        embedding=10,
        note="Its chunks are long, since past one hashed attention fails with a cache.",
    ),
    Architecture(
        "rembert",
        {"input_embedding_size": 16, "output_embedding_size": 24},
        spread=1.0,
        note=_ENCODER,
    ),
    Architecture("roberta", spread=0.2, embedding=10, note=_ENCODER),
    Architecture("roberta-prelayernorm", spread=0.1, note=_ENCODER),
    Architecture(
        "roc_bert",
        {
            "pronunciation_embed_dim": 8,
            "pronunciation_vocab_size": 64,
            "shape_embed_dim": 8,
            "shape_vocab_size": 64,
        },
        note=_ENCODER,
    ),
    Architecture("roformer", note=_ENCODER),
    Architecture("rwkv", {"context_length": 64}),
    Architecture("seed_oss"),
    Architecture("smollm3"),
    Architecture("solar_open"),
    Architecture("stablelm"),
    Architecture("starcoder2"),
    Architecture("trocr", {"tie_word_embeddings": False}, spread=0.1, embedding=10),
    Architecture("vaultgemma", _WINDOW_THEN_FULL),
    Architecture("whisper", {"max_target_positions": 64, "max_source_positions": 16}),
    Architecture("xglm", spread=1.0, embedding=0.1),
    Architecture("xlm", {"emb_dim": 32, "causal": True, "mask_token_id": 4}, embedding=0.3),
    Architecture("xlm-roberta", note=_ENCODER),
    Architecture("xlm-roberta-xl", note=_ENCODER),
    Architecture("xlnet", {"d_inner": 48}, note=_FLOAT32, spread=0.6, embedding=3),
    Architecture(
        "xlstm",
        {
            "hidden_size": 64,
            "num_heads": 2,
            "qk_dim_factor": 1.0,
            "ffn_proj_factor": 1.0,
            "ffn_round_up_to_multiple_of": 16,
            "chunk_size": 4,
        },
    ),
    Architecture("xmod", {"default_language": "en_XX"}, note=_ENCODER),
    Architecture("youtu", _LATENT),
    Architecture(
        "zamba",
        {
            "num_hidden_layers": 3,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        },
    ),
    Architecture(
        "zamba2",
        {
            **_NO_CLAMP,
            "num_hidden_layers": 3,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        },
    ),
    Architecture(
        "zaya",
        {
            "layer_types": ["hybrid", "hybrid_sliding"],
            "num_experts_per_tok": 1,
            "router_hidden_size": 16,
        },
    ),
)
ARCHITECTURES: dict[str, Architecture] = {each.model_type: each for each in _ALL}


def _sized(
    config_class: type[PretrainedConfig], changes: dict[str, Any], spread: float
) -> PretrainedConfig:
    known = {each.name for each in fields(config_class)}
    common = {**_COMMON, "initializer_range": spread, "init_std": spread}
    arguments = {name: value for name, value in common.items() if name in known}
    for name, value in changes.items():
        nested = config_class.sub_configs.get(name)
        if nested is not None and isinstance(value, dict):
            model_type = value.get("model_type")
            inner = {key: each for key, each in value.items() if key != "model_type"}
            value = _sized(CONFIG_MAPPING[model_type] if model_type else nested, inner, spread)
        arguments[name] = value
    return config_class(**arguments)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for name, value in changes.items():
        old = both.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        both[name] = value
    return both


def small_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """Make the small configuration of an architecture, with some arguments replaced."""
    architecture = ARCHITECTURES[model_type]
    # A configuration keeps the lists that it gets, and may change them.
    arguments = deepcopy(_merged(architecture.changes, changes))
    return _sized(CONFIG_MAPPING[model_type], arguments, architecture.spread)


def small_model(
    model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """Build an architecture small with random weights, the same for the same arguments."""
    architecture = ARCHITECTURES[model_type]
    config = small_config(model_type, **changes)
    with torch.random.fork_rng(devices=[]), _unset_is_not_a_number():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        _set_weights(model, architecture)
    return model.to(dtype).eval()


@contextmanager
def _unset_is_not_a_number() -> Iterator[None]:
    """Fill new memory, which some modules leave as they find it, with values that show."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@torch.no_grad()
def _set_weights(model: PreTrainedModel, architecture: Architecture) -> None:
    for parameter in model.parameters():
        spread = architecture.spread if parameter.dim() > 1 else 0.1
        if not parameter.isfinite().all() or not parameter.any():
            parameter.normal_(0, spread)
        elif parameter.dim() > 1 and 1e-6 < (deviation := parameter.std().item()) < spread / 5:
            parameter.mul_(spread / deviation)
    if architecture.embedding != 1:
        model.get_input_embeddings().weight.mul_(architecture.embedding)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        # The end of the text gets no score, so that no text ends early.
        head.weight[_COMMON["eos_token_id"]] = 0
        if head.bias is not None:
            head.bias[_COMMON["eos_token_id"]] = 0


def prompt(model_type: str) -> dict[str, Tensor]:
    """Make the arguments of `generate` for one short text."""
    assert model_type in ARCHITECTURES
    ids = torch.tensor([[1, 17, 5, 42, 23, 9]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
