#!/usr/bin/env bash
# Guess: in neural-compressor RTNConfig(bits=8, use_sym=False) is at least as near to the weights as bits=8 symmetric and as 7 bits
#   asymmetric: it has 256 levels, and a zero-point for each group besides.
# Versions: neural-compressor 3.10, torch 2.13.0 (CPU), transformers 5.24.0, accelerate 1.15.0.
# File: one linear layer of 512 inputs with normal weights, sigma 0.02, nothing but the options named; read back by running it on the
#   identity, and compared with rounding to nearest done here in float64.
# Came: 83 % off in groups of 32, 29 % with one group a row, where symmetric is 0.5 and 0.7 %, and 7 bits asymmetric 1 %. The codes and
#   the zero-points of the layer are right; its reading takes one from the other in int8, so that every difference beyond -128 to
#   127 wraps by 256 and the weights farthest from 0 in a skewed group change their sign. The rounding here with that wrap added gives the
#   same errors. 2 and 4 to 7 bits asymmetric are right. No warning.
# Known: nothing was found for this layer (an issue on zero-points of its formats, intel/neural-compressor#1695, is of another matter).
# Matters: 8 bits is what a mixed recipe gives to its most sensitive layers, and what nobody looks at; in groups of 32 they are
#   twice as far off as by 2 bits (41 %), and a sweep over widths finds that 8 bits asymmetric are useless.
# Helps: use_sym=True at 8 bits.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 2>/dev/null
venv/bin/pip install -q py-cpuinfo==9.0.0 prettytable==3.18.0 psutil==7.2.2 pydantic==2.14.4 pyyaml==6.0.4 2>/dev/null
venv/bin/pip install -q --no-deps neural-compressor==3.10 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import logging

import torch

logging.disable(logging.CRITICAL)
from neural_compressor.torch.quantization import RTNConfig, convert, prepare

weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 0.02


def layer_error(**config):
    model = torch.nn.Sequential(torch.nn.Linear(512, 256, bias=False))
    model[0].weight.data = weight.clone()
    model = convert(prepare(model, RTNConfig(**config)))
    return float((model(torch.eye(512)).T - weight).norm() / weight.norm())


def reference(bits, group, wrap):
    """Error of asymmetric rounding to nearest; wrap takes code less zero-point as an int8."""
    groups = weight.double().reshape(-1, group)
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    steps = ((groups / scale).round() + zero).clamp(0, 2**bits - 1) - zero
    if wrap:
        steps = (steps + 128) % 256 - 128
    return float((steps * scale - groups).norm() / groups.norm())


for group, name in ((32, 32), (512, -1)):
    symmetric = layer_error(bits=8, use_sym=True, group_size=name)
    for bits in (8, 7, 6, 5, 4, 2):
        found = layer_error(bits=bits, use_sym=False, group_size=name)
        right, wrapped = reference(bits, group, False), reference(bits, group, True)
        print(f"groups of {group}, {bits} bits asymmetric: {found:.4f}, rounding to nearest {right:.4f}, with the wrap {wrapped:.4f}"
              + (f"; 8 bits symmetric {symmetric:.4f}" if bits == 8 else ""), flush=True)
        assert abs(found / wrapped - 1) < 0.02, (found, wrapped)
        if bits == 8:
            assert found > 0.25 and right < symmetric < 0.008, (found, right, symmetric)
        else:
            assert right == wrapped
PY
# Output seen:
# groups of 32, 8 bits asymmetric: 0.8251, rounding to nearest 0.0048, with the wrap 0.8251; 8 bits symmetric 0.0053
# groups of 32, 7 bits asymmetric: 0.0095, rounding to nearest 0.0095, with the wrap 0.0095
# groups of 32, 6 bits asymmetric: 0.0193, rounding to nearest 0.0193, with the wrap 0.0193
# groups of 32, 5 bits asymmetric: 0.0391, rounding to nearest 0.0391, with the wrap 0.0391
# groups of 32, 4 bits asymmetric: 0.0809, rounding to nearest 0.0809, with the wrap 0.0809
# groups of 32, 2 bits asymmetric: 0.4068, rounding to nearest 0.4068, with the wrap 0.4068
# groups of 512, 8 bits asymmetric: 0.2936, rounding to nearest 0.0069, with the wrap 0.2936; 8 bits symmetric 0.0075
# groups of 512, 7 bits asymmetric: 0.0140, rounding to nearest 0.0140, with the wrap 0.0140
# groups of 512, 6 bits asymmetric: 0.0282, rounding to nearest 0.0281, with the wrap 0.0281
# groups of 512, 5 bits asymmetric: 0.0572, rounding to nearest 0.0572, with the wrap 0.0572
# groups of 512, 4 bits asymmetric: 0.1179, rounding to nearest 0.1179, with the wrap 0.1179
# groups of 512, 2 bits asymmetric: 0.5882, rounding to nearest 0.5882, with the wrap 0.5882
