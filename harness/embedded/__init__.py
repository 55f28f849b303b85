"""The small language model and the text that ship with the package, and what made them."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
TOKENIZER_DIR = MODEL_DIR

__all__ = ["MODEL_DIR", "TOKENIZER_DIR"]
