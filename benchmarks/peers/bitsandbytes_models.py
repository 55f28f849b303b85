"""Save checkpoints with bitsandbytes, and the weights and logits that it makes of them.

Runs in the peers' environment: python bitsandbytes_models.py BASE TOKENS.json OUT. Prints the
version as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

# Name of the checkpoint: settings, type of the model.
SETTINGS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "nf4": ({"bnb_4bit_quant_type": "nf4"}, "float32"),
    "nf4-double": ({"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "bfloat16"),
    "fp4": ({"bnb_4bit_quant_type": "fp4"}, "float16"),
    "fp4-double": ({"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}, "float32"),
    "int8": (None, "float16"),
}


def dequantized(module: torch.nn.Module) -> torch.Tensor | None:
    """Return the weight that bitsandbytes' own function gives; None for any other module."""
    weight: Any = getattr(module, "weight", None)
    found: torch.Tensor | None = None
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        found = functional.dequantize_4bit(weight.data, weight.quant_state)
    elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
        found = functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    return found


def main() -> None:
    base, tokens, out = sys.argv[1:]
    ids = torch.tensor(json.loads(Path(tokens).read_text()))
    for name, (four, dtype) in SETTINGS.items():
        own: dict[str, Any] = (
            {"load_in_8bit": True} if four is None else {"load_in_4bit": True, **four}
        )
        if four is not None:
            own["bnb_4bit_compute_dtype"] = getattr(torch, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            base,
            quantization_config=BitsAndBytesConfig(**own),
            dtype=getattr(torch, dtype),
            device_map="cpu",
            trust_remote_code=False,
        ).eval()
        # Before anything runs: a CPU with AVX512-BF16 would leave absmax transposed.
        model.save_pretrained(Path(out) / name)
        found = {n: dequantized(m) for n, m in model.named_modules()}
        kept = {n: w.contiguous() for n, w in found.items() if w is not None}
        with torch.no_grad():
            kept["logits"] = model(ids).logits.float().contiguous()
        save_file(kept, Path(out) / name / "expected.safetensors.kept")
    print(json.dumps(bitsandbytes.__version__))


main()
