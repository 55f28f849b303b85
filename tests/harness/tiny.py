"""A model so small that quantizing it takes a moment, as a folder."""

import shutil
from pathlib import Path


def save_tiny_model(folder: Path) -> Path:
    """Write a random OPT model with the embedded tokenizer: 2 blocks of width 32."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from harness.embedded import MODEL_DIR

    config = OPTConfig.from_pretrained(MODEL_DIR)
    config.hidden_size = config.word_embed_proj_dim = 32
    config.ffn_dim, config.num_hidden_layers, config.num_attention_heads = 64, 2, 2
    config.max_position_embeddings = 64
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder
