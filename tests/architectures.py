"""Tiny random models of nearly every causal architecture that transformers has."""

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# What architectures call their sizes. Each takes those that it knows.
SIZES: dict[str, Any] = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "word_embed_proj_dim"), 64)
    | dict.fromkeys(("attention_hidden_size", "lru_width"), 64)
    | dict.fromkeys(("intermediate_size", "d_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner"), 128)
    | dict.fromkeys(("d_ff", "mlp_hidden_size", "ffn_hidden_size", "mamba_d_ssm"), 128)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4)
    | dict.fromkeys(("encoder_layers", "num_key_value_heads", "num_kv_heads"), 2)
    | {"encoder_attention_heads": 4, "head_dim": 16, "kv_channels": 16, "qk_head_dim": 16, "rotary_dim": 8}
    | dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512)
    | {"sliding_window": 16, "attention_window_size": 16, "block_size": 16, "type_vocab_size": 2}
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
    | dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "n_group", "zero_expert_num"), 2)
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32)
    | {"moe_shared_expert_intermediate_size": 32, "n_shared_experts": 1, "num_shared_experts": 1, "topk_group": 1}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    | {"first_k_dense_replace": 1, "mtp_num_hidden_layers": 0, "num_nextn_predict_layers": 0}
    | dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "mamba_n_heads", "mamba_num_heads"), 8)
    | dict.fromkeys(("mamba_d_head", "mamba_headdim", "mamba_head_dim", "mamba_chunk_size", "chunk_size"), 16)
    | {"mamba_dt_rank": 8, "n_groups": 1, "mamba_n_groups": 1, "use_mamba_kernels": False, "conv_L_cache": 3}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "hidden_size_per_layer_input": 16}
    | {"initializer_range": 0.2, "init_std": 0.2}
)
LATENT = {"num_key_value_heads": 4}  # attention by latent vectors has as many keys as queries
HYBRID = ["linear_attention", "full_attention"] * 2
OWN: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "bailing_hybrid": LATENT | {"layer_types": HYBRID},
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe_lite": LATENT,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8},
    "minicpm3": LATENT,
    "youtu": LATENT,
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
        "n_mamba_heads": 8,
    },
}

EVERY = (
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "bailing_hybrid", "bamba", "bart", "beam", "bert",
    "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "blenderbot-small",
    "bloom", "camembert", "codegen", "cohere", "cohere2", "cohere2_moe", "cwm", "data2vec-text", "deepseek_v2",
    "deepseek_v3", "deepseek_v4", "diffllama", "doge", "dots1", "electra", "ernie", "ernie4_5", "ernie4_5_moe",
    "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "flint", "gemma", "gemma2",
    "gemma3_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt-sw3",
    "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa",
    "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium", "hrm_text",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "internlm3", "iquestcoder", "jais2",
    "jamba", "jetmoe", "kolibri1", "laguna", "lfm2", "lfm3", "llama", "llama4_text", "mamba", "mamba2",
    "marian", "mbart", "megatron-bert", "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2",
    "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "moshi", "mpt",
    "mvp", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt",
    "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe", "plbart", "prophetnet", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "rembert",
    "roberta", "roberta-prelayernorm", "roformer", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm",
    "starcoder2", "trocr", "vaultgemma", "whisper", "xglm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xlstm",
    "youtu", "zamba2",
)  # fmt: skip


def tiny_config(name: str, tokenizer: PreTrainedTokenizerBase, **more: Any) -> PreTrainedConfig:
    """The configuration of an architecture by its name in transformers, every size as small as it can be."""
    kind = CONFIG_MAPPING[name]
    known = {*inspect.signature(kind.__init__).parameters}
    known |= {field for each in kind.__mro__ for field in getattr(each, "__annotations__", {})}
    words = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), len(tokenizer))
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    found = {field: value for field, value in (SIZES | words).items() if field in known}
    return kind(**(found | OWN.get(name, {}) | more))


def tiny_folder(
    path: Path, name: str, tokenizer: PreTrainedTokenizerBase, spread: float | None = 0.25, **more: Any
) -> Path:
    """A folder with a tiny random model of an architecture; a wide spread of its weights makes it decided."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_config(name, tokenizer, **more))
    with torch.no_grad():
        for field, weight in model.named_parameters():
            if spread and weight.ndim >= 2 and "A_log" not in field:
                weight.normal_(0, spread)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
