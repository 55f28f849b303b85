#!/usr/bin/env bash
# Guess: HQQ's error relative to the weights is the same whatever their size: scale and zero are floats of each group.
# Versions: hqq 0.2.8.post1, torch 2.13.0 (CPU), everything in float32.
# Came: only above a floor. The step of a group is never smaller than 1/20000, so a group whose range is below
#   (2^bits - 1) / 20000 leaves most of its levels unused: 8 bits lose accuracy from sigma 0.002 down, and at 0.0001
#   they are worth no more than 4 bits, which lose there too. The optimizer does not help; no warning is given.
# Matters: at 8 bits every group with a range below 0.013 is touched, where nobody looks for an error; a comparison of
#   widths by this quantizer mixes in the size of the weights.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 setuptools wheel 2>/dev/null
# HQQLinear wants accelerate and transformers; its quantizer alone wants termcolor, tqdm and einops.
venv/bin/pip install -q termcolor==3.3.0 tqdm==4.70.1 einops==0.8.2 2>/dev/null
DISABLE_CUDA=1 venv/bin/pip install -q --no-deps --no-build-isolation hqq==0.2.8.post1 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import torch
from hqq.core.quantize import Quantizer

normal = torch.randn(128, 1024, generator=torch.Generator().manual_seed(0))
errors = {}
for sigma in (0.02, 0.002, 0.0005, 0.0001):
    weight = normal * sigma
    for bits in (8, 4, 2):
        codes, meta = Quantizer.quantize(
            weight, nbits=bits, group_size=64, axis=1, device="cpu", compute_dtype=torch.float32
        )
        found = Quantizer.dequantize(codes, meta)
        errors[bits, sigma] = float((found - weight).norm() / weight.norm())
    print(f"sigma {sigma}: " + ", ".join(f"{bits} bits {errors[bits, sigma]:.4f}" for bits in (8, 4, 2)))
assert errors[8, 0.02] < 0.006 and errors[8, 0.0005] > 4 * errors[8, 0.02], errors
assert 0.9 < errors[8, 0.0001] / errors[4, 0.0001] < 1.1, errors
assert abs(errors[2, 0.0005] / errors[2, 0.02] - 1) < 0.05, errors
PY
# Output seen:
# sigma 0.02: 8 bits 0.0051, 4 bits 0.0860, 2 bits 0.4307
# sigma 0.002: 8 bits 0.0068, 4 bits 0.0860, 2 bits 0.4307
# sigma 0.0005: 8 bits 0.0274, 4 bits 0.0860, 2 bits 0.4307
# sigma 0.0001: 8 bits 0.1367, 4 bits 0.1367, 2 bits 0.4307
