#!/usr/bin/env bash
# Guess: MXFP4 is a standard (OCP MX 1.0), whose conversion takes the scale 2^(floor(log2(largest)) - 2) of a block of
#   32: five libraries make the same values of the same float32 weights.
# Versions: gguf 0.19.0, torchao 0.18.0, compressed-tensors 0.20.1, mlx 0.32.4 (CPU), nvidia-modelopt 0.47.0,
#   torch 2.13.0 (CPU).
# Came: three rules. gguf and torchao floor, clipping all between 6 and 8 steps to 6; compressed-tensors goes to the
#   next scale from 7 steps on; mlx and modelopt from 6 on, so that nothing clips. 14 % and 44 % of the blocks differ
#   from the standard's. The rule that clips nothing has the largest error, the one between them the least.
# Matters: "MXFP4" in a table names the reader's grid, not the quantizer; the difference is as large as that between
#   many methods, and comes before any method.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 gguf==0.19.0 'mlx[cpu]==0.32.4' mlx-cpu==0.32.4 2>/dev/null
venv/bin/pip install -q transformers==5.23.0 pydantic==2.14.3 loguru==0.7.3 pulp==3.3.2 rich==15.0.0 \
  ninja psutil==7.2.2 omegaconf==2.4.0 scipy==1.17.1 2>/dev/null
venv/bin/pip install -q --no-deps torchao==0.18.0 compressed-tensors==0.20.1 nvidia-modelopt==0.47.0 2>/dev/null
venv/bin/python - 2>warnings <<'PY'
import gguf, mlx.core as mx, numpy as np, torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor
from torchao.prototype.mx_formats.mx_tensor import MXTensor

weight = (np.random.default_rng(0).standard_normal((64, 1024)) * 0.02).astype(np.float32)

def of_gguf(weight):
    kind = gguf.GGMLQuantizationType.MXFP4
    return gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)

def of_torchao(weight):
    made = MXTensor.to_mx(torch.from_numpy(weight), torch.float4_e2m1fn_x2, 32)
    return made.dequantize(torch.float32).numpy()

def of_compressed_tensors(weight):
    weight = torch.from_numpy(weight)
    form = QuantizationArgs(num_bits=4, type="float", strategy="group", group_size=32, symmetric=True,
                            scale_dtype=torch.uint8, zp_dtype=torch.uint8)
    blocks = weight.view(64, -1, 32)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), form)
    return fake_quantize(weight, scale, zero, form).numpy()

def of_mlx(weight):
    return np.array(mx.dequantize(*mx.quantize(mx.array(weight), mode="mxfp4"), mode="mxfp4").astype(mx.float32))

def of_modelopt(weight):
    made, scale = MXFP4QTensor.quantize(torch.from_numpy(weight), 32)
    return made.dequantize(torch.float32, scale=scale, block_sizes={-1: 32}).reshape(64, -1).numpy()

blocks = weight.reshape(-1, 32)
floor = 2.0 ** (np.floor(np.log2(abs(blocks).max(1, keepdims=True))) - 2)
levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
nearest = levels[abs(abs(blocks / floor)[..., None] - levels).argmin(-1)]
standard = (np.sign(blocks) * nearest * floor).reshape(weight.shape).astype(np.float32)
error, other = {}, {}
for make in (of_gguf, of_torchao, of_compressed_tensors, of_mlx, of_modelopt):
    name, found = make.__name__[3:], make(weight)
    error[name] = float(np.linalg.norm(found - weight) / np.linalg.norm(weight))
    other[name] = float((found != standard).reshape(-1, 32).any(1).mean())
    print(f"{name}: error {error[name]:.4f}, {other[name]:.0%} of the blocks differ from the standard's", flush=True)
assert other["gguf"] == other["torchao"] == 0 and error["mlx"] == error["modelopt"], (other, error)
assert 0.1 < other["compressed_tensors"] < 0.2 and 0.4 < other["mlx"] == other["modelopt"] < 0.5, other
assert error["compressed_tensors"] < error["gguf"] < error["mlx"], error
PY
# Output seen:
# gguf: error 0.1142, 0% of the blocks differ from the standard's
# torchao: error 0.1142, 0% of the blocks differ from the standard's
# compressed_tensors: error 0.1120, 14% of the blocks differ from the standard's
# mlx: error 0.1189, 44% of the blocks differ from the standard's
# modelopt: error 0.1189, 44% of the blocks differ from the standard's
