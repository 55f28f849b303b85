#!/usr/bin/env bash
# Guess: 1-bit affine quantization in MLX is poor, but nearer to the weights than zeros are: relative
#   error below 1 (the best two values of a Gaussian, +-0.8 sigma, leave 0.60).
# Version: mlx 0.32.4 on its CPU backend (mlx-cpu 0.32.4).
# Came: 1.40, 1.66 and 1.90 in groups of 32, 64 and 128. The two values are the minimum and the
#   maximum of the group, so every weight is moved to an extreme, and larger groups make it worse. A
#   layer of zeros has error 1. At 2 bits MLX's grid, which passes through 0, beats plain min-max.
# Matters: a width that a quantizer accepts is no width that it was made for; a table of errors wants
#   "all weights 0" as a line.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q 'mlx[cpu]==0.32.4' mlx-cpu==0.32.4 numpy==2.4.6 2>/dev/null
venv/bin/python - <<'PY'
import mlx.core as mx, numpy as np

weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
for size in (32, 64, 128):
    errors = []
    for bits in (1, 2):
        parts = mx.quantize(mx.array(weight), group_size=size, bits=bits)
        found = np.array(mx.dequantize(*parts, group_size=size, bits=bits))
        errors.append(np.linalg.norm(found - weight) / np.linalg.norm(weight))
    groups = weight.reshape(-1, size)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    step = (high - low) / 3
    plain = np.linalg.norm(np.round((groups - low) / step) * step + low - groups) / np.linalg.norm(groups)
    print(f"groups of {size}: 1 bit {errors[0]:.2f}, 2 bits {errors[1]:.3f} (min-max {plain:.3f})")
    assert errors[0] > 1.3 and errors[1] < plain
PY
# Output seen:
# groups of 32: 1 bit 1.40, 2 bits 0.363 (min-max 0.389)
# groups of 64: 1 bit 1.66, 2 bits 0.396 (min-max 0.447)
# groups of 128: 1 bit 1.90, 2 bits 0.428 (min-max 0.501)
