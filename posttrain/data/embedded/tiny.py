"""`embedded:tiny`: a random Llama with a byte-level tokenizer, made locally in a second, for tests."""

from pathlib import Path

from posttrain.data.embedded.cache import cached


def tiny_model(folder: Path | None = None) -> Path:
    """Folder of a random two-layer Llama (hidden 32, 259 tokens) with a byte-level tokenizer and ChatML; for tests.

    Any text round-trips; the bytes are the same on every call. Written to `folder`, else kept in the cache.
    """
    if folder is None:
        return cached("tiny-1", _build_tiny)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _build_tiny(folder)
    return folder


def _build_tiny(folder: Path) -> None:
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from posttrain.data.embedded.chatml import BOS, EOS, PAD, save_tokenizer

    # The special tokens have the ids they have in SmolLM2; then the 256 bytes, and no merges.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([PAD, BOS, EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, EOS)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    save_tokenizer(tokenizer, folder, max_length=2048)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    # Drawn by name from its own generator, so that the bytes stay when Transformers changes its initialisation.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0)
    model.save_pretrained(folder)
