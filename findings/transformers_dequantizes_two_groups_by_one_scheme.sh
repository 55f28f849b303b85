#!/usr/bin/env bash
# Guess: CompressedTensorsConfig(dequantize=True) decodes every layer of a checkpoint with two config groups (4 bits for
#   attention, 8 bits for the MLP) by the scheme of its own group, as the loading without dequantize=True does.
# Versions: transformers 5.23.0, compressed-tensors 0.20.0, torch 2.13.0 (CPU).
# File: a tiny random Llama, both groups symmetric with groups of 8, packed and saved by compressed-tensors itself.
# Came: loading plainly gives every weight exactly. With dequantize=True nothing is said, attention is right, and
#   layers of the MLP are decoded as 4 bits: weights off by 1.06 of the largest, logits (up to 3.89) by up to 4.7.
# Matters: mixed precision (attention or head in 8 bits) is common, and dequantize=True is how asymmetric files are read.
# Helps: to load without dequantize=True where the grids are symmetric, and to compare one layer's weight otherwise.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6 loguru==0.7.3 pydantic==2.14.3 psutil accelerate==1.15.0 2>/dev/null
venv/bin/pip install -q --no-deps compressed-tensors==0.20.0 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'PY' || { tail -20 log; exit 1; }
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config,
)
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
)).eval()
BITS = {"attention": 4, "mlp": 8}
groups = {
    name: QuantizationScheme(
        targets=[f"re:.*{part}.*proj"],
        weights=QuantizationArgs(num_bits=BITS[name], symmetric=True, strategy="group", group_size=8),
    )
    for name, part in (("attention", "self_attn"), ("mlp", "mlp"))
}
config = QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status="frozen")
apply_quantization_config(model, config)
expected = {}  # textbook: scale times the nearest whole number of the signed range
for name, module in model.named_modules():
    if getattr(module, "quantization_scheme", None) is not None:
        bits = BITS["attention" if "self_attn" in name else "mlp"]
        weight = module.weight.data.unflatten(1, (-1, 8))
        scale = weight.abs().amax(-1) / (2 ** (bits - 1) - 0.5)
        module.weight_scale.data.copy_(scale)
        codes = (weight / scale[..., None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        expected[name] = (codes * scale[..., None]).flatten(1)
compressor = ModelCompressor.from_pretrained_model(model)
compressor.compress_model(model)
model.save_pretrained("packed")
compressor.update_config("packed")
tokens = torch.arange(24)[None]


def worst(read, part):
    """The largest error of a layer of one group, over the largest weight of that layer."""
    with torch.no_grad():
        read(tokens)  # the first pass unpacks what is still packed
    pairs = [(read.get_submodule(n).weight.detach(), w) for n, w in expected.items() if part in n]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


plain = AutoModelForCausalLM.from_pretrained("packed", dtype=torch.float32).eval()
dequantized = AutoModelForCausalLM.from_pretrained(
    "packed", dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
).eval()
found = {
    (how, part): worst(read, part)
    for how, read in (("plain", plain), ("dequantize=True", dequantized))
    for part in ("self_attn", "mlp")
}
for key, value in found.items():
    print(*key, f"{value:.3g}")
with torch.no_grad():
    apart = float((plain(tokens).logits - dequantized(tokens).logits).abs().max())
    size = float(plain(tokens).logits.abs().max())
print(f"logits: up to {size:.3g}, apart by up to {apart:.3g}")
assert max(found["plain", part] for part in ("self_attn", "mlp")) < 1e-5, found
wrong = [part for part in ("self_attn", "mlp") if found["dequantize=True", part] > 0.1]
assert len(wrong) == 1, found
assert apart > 0.2 * size
PY
