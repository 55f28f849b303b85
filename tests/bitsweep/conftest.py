"""A model folder so small that quantizing it takes a moment, and a text to calibrate on."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT model with the embedded tokenizer: 2 blocks of width 32."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from harness.embedded import MODEL_DIR

    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = OPTConfig.from_pretrained(MODEL_DIR)
    config.hidden_size = config.word_embed_proj_dim = 32
    config.ffn_dim, config.num_hidden_layers, config.num_attention_heads = 64, 2, 2
    config.max_position_embeddings = 64
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short stories, about a thousand tokens."""
    file = tmp_path_factory.mktemp("texts") / "stories.txt"
    file.write_text("\n\n".join(f"Tom had {n} red apples and Anna saw {n}." for n in range(40)))
    return file
