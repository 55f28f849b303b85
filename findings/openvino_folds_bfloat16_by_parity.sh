#!/usr/bin/env bash
# Guess: OpenVINO rounds float32 to bfloat16 to nearest, ties to even, wherever it does it: in a Constant, in a Convert
#   that is folded when the model is compiled, and in one that runs; as torch and ml_dtypes do.
# Versions: openvino 2026.4.1 (CPU), ml_dtypes 0.6.0, numpy 2.4.6.
# File: normal float32 numbers (sigma 0.02), through float32 -> bfloat16 -> float32.
# Came: only where it runs. Folded, or given to a Constant, 25 % of the numbers come out one step too low: the half that is
#   added before the cut is added only if the code below is odd, so above an even code everything is cut off, not only
#   the tie. Weights shrink by 0.14 % and their error grows by 58 %.
# Known: the rule's function in OpenVINO's header is named after rounding to nearest even; a reviewer doubted it in
#   openvinotoolkit/openvino#37104, which copied it for the GPU.
# Matters: one cast in one library gives two results by whether its input is known before; weights "in bfloat16" that
#   went through a Constant are not the checkpoint's, in a way that no tie rule explains, and biased towards zero.
# Helps: to round outside (ml_dtypes, torch) and hand over numbers that bfloat16 holds: these stay as they are.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6 ml_dtypes==0.6.0 openvino==2026.4.1 2>/dev/null
venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import ml_dtypes
import numpy as np
import openvino
from openvino import opset13 as ops

core = openvino.Core()
numbers = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(np.float32)
BF16, F32 = openvino.Type.bf16, openvino.Type.f32


def folded(numbers):
    node = ops.convert(ops.convert(ops.constant(numbers), BF16), F32)
    return next(iter(core.compile_model(openvino.Model([node], []), "CPU")([]).values()))


def run(numbers):
    put = ops.parameter([len(numbers)], F32)
    node = ops.convert(ops.convert(put, BF16), F32)
    return core.compile_model(openvino.Model([node], [put]), "CPU")([numbers])[0]


def constant(numbers):
    return ops.constant(numbers, dtype=BF16).get_data(dtype=np.float32)


def parity(numbers):
    bits = numbers.view(np.uint32)
    return ((bits + ((bits & 0x10000) >> 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


nearest = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
for way in (run, folded, constant):
    found = way(numbers)
    shares = [float((found != each).mean()) for each in (nearest, parity(numbers))]
    error = [float(np.linalg.norm(each - numbers) / np.linalg.norm(numbers)) for each in (found, nearest)]
    size = float(np.abs(found).sum() / np.abs(numbers).sum() - 1)
    print(f"{way.__name__}: {shares[0]:.1%} differ from the nearest, {shares[1]:.1%} from the rule by parity; "
          f"error {error[0]:.5f} (nearest {error[1]:.5f}), size {size:+.4%}")
    assert (found.astype(ml_dtypes.bfloat16).astype(np.float32) == found).all()
    assert (shares[0] == 0) if way is run else (0.24 < shares[0] < 0.26 and shares[1] == 0), shares
    assert (way(nearest) == nearest).all()
one = np.array([1.0, 1 + 0.0039, 1 + 0.0041, 1 + 0.0077, 1 + 0.0079], np.float32)
print("of " + ", ".join(f"{n:.4f}" for n in one) + ": nearest",
      one.astype(ml_dtypes.bfloat16).astype(float).tolist(), "folded", folded(one).tolist())
PY
# Output seen:
# run: 0.0% differ from the nearest, 25.0% from the rule by parity; error 0.00166 (nearest 0.00166), size -0.0003%
# folded: 25.0% differ from the nearest, 0.0% from the rule by parity; error 0.00262 (nearest 0.00166), size -0.1412%
# constant: 25.0% differ from the nearest, 0.0% from the rule by parity; error 0.00262 (nearest 0.00166), size -0.1412%
# of 1.0000, 1.0039, 1.0041, 1.0077, 1.0079: nearest [1.0, 1.0, 1.0078125, 1.0078125, 1.0078125] folded [1.0, 1.0, 1.0, 1.0, 1.0078125]
