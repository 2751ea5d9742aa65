"""Models of two layers, of every kind of architecture that tests ask about, in float32 with weights of their own."""

from typing import Any

VOCABULARY = 61
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Family: its model type, and its options beside SMALL.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral_window": ("mistral", {"sliding_window": 5}),
    "gemma2": (
        "gemma2",
        {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    ),
    "gpt2": (
        "gpt2",
        {"n_embd": 16, "n_inner": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    ),
    "phi": ("phi", {"num_key_value_heads": 2}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "decoder_sparse_step": 1,
        },
    ),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 2, "attn_implementation": "eager"}),
    "mamba": ("mamba", {"state_size": 4, "time_step_rank": 4}),
}


def tiny(family: str, seed: int = 0, scores: bool = False, **options: Any) -> Any:
    """A causal language model of the family, or a sequence classifier with one label."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind, own = FAMILIES[family]
    given = {**SMALL, **own, **options}
    how = {"attn_implementation": given.pop("attn_implementation", "sdpa")}
    if family == "mamba":
        how = {}
    torch.manual_seed(seed)
    if scores:
        config = AutoConfig.for_model(kind, num_labels=1, **given)
        return AutoModelForSequenceClassification.from_config(config, **how).float()
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **given), **how).float()
