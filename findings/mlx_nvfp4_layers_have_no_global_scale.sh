#!/usr/bin/env bash
# Guess: NVFP4, with a finer scale (e4m3) on a smaller block (16), is nearer to the weights than MXFP4 whatever their
#   size, in MLX as in torchao: both are 4-bit floating-point numbers, and a scale follows each block.
# Versions: mlx 0.32.4 on its CPU backend (mlx-cpu 0.32.4), torchao 0.18.0, torch 2.13.0 (CPU).
# Came: in MLX not at the size of real weights. A layer made by to_quantized(mode="nvfp4") has no global scale, so its
#   block scales run into e4m3's smallest numbers (2^-9): at sigma 0.02 the error is 8 % larger, at 0.01 MXFP4 is nearer,
#   at 0.002 nearly all is lost and at 0.001 every weight is zero. No warning. torchao's weight-only layer, which
#   divides by a scale of the tensor first, has the same error at all sizes. mx.quantize takes such a scale now
#   (global_scale); the layer does not pass one.
# Matters: "NVFP4" of one model in two libraries differs by the size of its weights alone; layers of large models have
#   sigmas of 0.005 to 0.02.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 'mlx[cpu]==0.32.4' mlx-cpu==0.32.4 2>/dev/null
venv/bin/pip install -q --no-deps torchao==0.18.0 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import mlx.core as mx, mlx.nn as nn, numpy as np, torch
from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig
from torchao.quantization import quantize_

normal = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)

def of_mlx(weight, mode, block):
    layer = nn.Linear(1024, 64, bias=False)
    layer.weight = mx.array(weight)
    made = layer.to_quantized(group_size=block, bits=4, mode=mode)
    assert sorted(made.parameters()) == ["scales", "weight"], sorted(made.parameters())
    found = mx.dequantize(made.weight, made.scales, group_size=block, bits=4, mode=mode)
    return np.array(found.astype(mx.float32))

def of_torchao(weight):
    layer = torch.nn.Linear(1024, 64, bias=False, dtype=torch.bfloat16)
    layer.weight.data = torch.from_numpy(weight).bfloat16()
    quantize_(torch.nn.Sequential(layer), NVFP4WeightOnlyConfig())
    return layer.weight.dequantize(torch.float32).numpy()

for sigma in (1, 0.02, 0.01, 0.005, 0.002, 0.001):
    weight = normal * np.float32(sigma)
    mlx4, mx4, torchao4 = (
        float(np.linalg.norm(found - weight) / np.linalg.norm(weight))
        for found in (of_mlx(weight, "nvfp4", 16), of_mlx(weight, "mxfp4", 32), of_torchao(weight))
    )
    print(f"sigma {sigma}: MLX nvfp4 {mlx4:.3f}, MLX mxfp4 {mx4:.3f}, torchao nvfp4 {torchao4:.3f}")
    assert abs(torchao4 - 0.095) < 0.001 and 0.115 < mx4 < 0.12, (torchao4, mx4)
    assert (mlx4 < mx4) == (sigma >= 0.02) and (mlx4 == 1) == (sigma == 0.001), mlx4
PY
# Output seen:
# sigma 1: MLX nvfp4 0.095, MLX mxfp4 0.116, torchao nvfp4 0.095
# sigma 0.02: MLX nvfp4 0.103, MLX mxfp4 0.119, torchao nvfp4 0.095
# sigma 0.01: MLX nvfp4 0.125, MLX mxfp4 0.119, torchao nvfp4 0.095
# sigma 0.005: MLX nvfp4 0.138, MLX mxfp4 0.119, torchao nvfp4 0.095
# sigma 0.002: MLX nvfp4 0.958, MLX mxfp4 0.116, torchao nvfp4 0.095
# sigma 0.001: MLX nvfp4 1.000, MLX mxfp4 0.116, torchao nvfp4 0.095
