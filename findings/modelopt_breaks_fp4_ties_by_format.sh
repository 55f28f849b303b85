#!/usr/bin/env bash
# Guess: one library rounds one 4-bit float, E2M1, in one way: a number midway between two levels goes to the even
#   code in MXFP4 and in NVFP4 alike, as the casts of ml_dtypes (and JAX) do.
# Versions: nvidia-modelopt 0.47.0, gguf 0.19.0, ml_dtypes 0.6.0, torch 2.13.0 (CPU).
# Came: in NVFP4 so; in MXFP4 every tie of modelopt goes towards zero, and so it does in gguf. With bfloat16 weights
#   and scales that are powers of two ties are no rarity: of weights in MXFP4 every 200th is one, in 1 block of 7.
# Matters: a bit-exact comparison of two FP4 writers has to name the rule for ties; rounding them all towards zero also
#   shrinks the weights.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 gguf==0.19.0 ml_dtypes==0.6.0 scipy==1.17.1 2>/dev/null
venv/bin/pip install -q transformers==5.23.0 pydantic==2.14.3 pulp==3.3.2 rich==15.0.0 2>/dev/null
venv/bin/pip install -q ninja psutil==7.2.2 omegaconf==2.4.0 2>/dev/null
venv/bin/pip install -q --no-deps nvidia-modelopt==0.47.0 2>/dev/null
venv/bin/python - 2>warnings <<'PY'
import gguf, ml_dtypes, numpy as np, torch
from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

def levels(packed):
    packed = packed.reshape(-1).numpy()
    return LEVELS[np.stack([packed & 15, packed >> 4], 1).reshape(-1)]

def mxfp4(numbers):
    made, scale = MXFP4QTensor.quantize(torch.from_numpy(numbers), 32)
    return made.dequantize(torch.float32, scale=scale, block_sizes={-1: 32}).numpy().reshape(numbers.shape)

def of_gguf(numbers):
    kind = gguf.GGMLQuantizationType.MXFP4
    return gguf.quants.dequantize(gguf.quants.quantize(numbers, kind), kind)

ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5] + [6.0] * 9 + [0.0] * 16, np.float32)[None]
one = torch.ones(1, 2)
nvfp4, *_ = NVFP4QTensor.quantize(torch.from_numpy(ties.copy()), 16, one, torch.tensor(1.0))
found = {
    "ml_dtypes": ties.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)[0],
    "modelopt, NVFP4": levels(nvfp4._quantized_data),
    "modelopt, MXFP4": mxfp4(ties)[0],
    "gguf, MXFP4": of_gguf(ties)[0],
}
print("ties", ties[0, :7].tolist())
for name, made in found.items():
    print(f"{name}: {made[:7].tolist()}")
even, down = [0, 1, 1, 2, 2, 4, 4], [0, 0.5, 1, 1.5, 2, 3, 4]
assert [list(made[:7]) for made in found.values()] == [even, even, down, down], found

weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy()
made = of_gguf(weight)
blocks = weight.reshape(-1, 32)
step = 2.0 ** (np.floor(np.log2(abs(blocks).max(1, keepdims=True))) - 2)
to_even = (blocks / step).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * step
other = made.reshape(-1, 32) != to_even
print(f"bfloat16 weights in MXFP4: ties decide {other.mean():.1%} of them, in {other.any(1).mean():.0%} of the blocks")
assert 0.004 < other.mean() < 0.006 and (abs(made.reshape(-1, 32)) <= abs(to_even)).all()
PY
# Output seen:
# ties [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
# ml_dtypes: [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
# modelopt, NVFP4: [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
# modelopt, MXFP4: [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
# gguf, MXFP4: [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
# bfloat16 weights in MXFP4: ties decide 0.5% of them, in 14% of the blocks
