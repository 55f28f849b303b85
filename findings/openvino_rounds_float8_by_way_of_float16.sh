#!/usr/bin/env bash
# Guess: OpenVINO's f8e4m3 and f8e5m2 of a float32 number are the nearest ones, ties to even, as those of torch, ml_dtypes
#   and onnxruntime, which agree on every number within the range.
# Versions: openvino 2026.4.1 (CPU), onnx 1.23.2, onnxruntime 1.32.0, torch 2.13.0 (CPU), ml_dtypes 0.6.0, numpy 2.4.6.
# File: normal float32 numbers, through float32 -> float8 -> float32.
# Came: 0.4 % (e4m3) and 0.2 % (e5m2) are one step off, all of them the ones just off the middle between two float8
#   numbers: OpenVINO rounds to float16 first, where they become the middle, and then to even. The same in a Constant,
#   folded, and at run time; on numbers that float16 holds all four agree.
# Matters: a checkpoint in float8 written through OpenVINO is not bit for bit that of other tools, although all say
#   "nearest, ties to even"; a test that asks for equal codes fails on some layer.
# Helps: to round to float8 outside and hand over the bytes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0 openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 2>/dev/null
venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import ml_dtypes
import numpy as np
import onnxruntime
import openvino
import torch
from onnx import TensorProto, helper
from openvino import opset13 as ops

onnxruntime.set_default_logger_severity(4)
core, F32 = openvino.Core(), openvino.Type.f32
NAMES = {"float8_e4m3fn": ("f8e4m3", "FLOAT8E4M3FN"), "float8_e5m2": ("f8e5m2", "FLOAT8E5M2")}


def of_openvino(numbers, name):
    put, kind = ops.parameter([len(numbers)], F32), getattr(openvino.Type, NAMES[name][0])
    model = openvino.Model([ops.convert(ops.convert(put, kind), F32)], [put])
    return core.compile_model(model, "CPU")([numbers])[0]


def of_openvino_constant(numbers, name):
    return ops.constant(numbers, dtype=getattr(openvino.Type, NAMES[name][0])).get_data(dtype=np.float32)


def of_onnxruntime(numbers, name):
    put = helper.make_tensor_value_info
    nodes = [helper.make_node("Cast", ["x"], ["q"], to=getattr(TensorProto, NAMES[name][1])),
             helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(nodes, "graph", [put("x", TensorProto.FLOAT, [None])], [put("y", TensorProto.FLOAT, [None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": numbers})[0]


def of_torch(numbers, name):
    return torch.from_numpy(numbers).to(getattr(torch, name)).float().numpy()


normal = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
for name in NAMES:
    kind = getattr(ml_dtypes, name)
    for title, numbers in (("float32", normal), ("float16", normal.astype(np.float16).astype(np.float32))):
        nearest = numbers.astype(kind).astype(np.float32)
        twice = numbers.astype(np.float16).astype(kind).astype(np.float32)
        for way in (of_torch, of_onnxruntime, of_openvino, of_openvino_constant):
            found = way(numbers, name)
            share, other = float((found != nearest).mean()), float((found != twice).mean())
            print(f"{name} of {title} numbers, {way.__name__[3:]}: {share:.2%} not the nearest, "
                  f"{other:.2%} not the nearest of float16's", flush=True)
            if title == "float32" and "openvino" in way.__name__:
                assert share > 0.001 and other == 0, (share, other)
            else:
                assert share == 0, share
number = np.float32(1.0625 + 2**-14)
for name in ("float8_e4m3fn",):
    print(f"{number:.7f}: ml_dtypes {float(number.astype(ml_dtypes.float8_e4m3fn))}, openvino "
          f"{of_openvino(np.array([number]), name)[0]}")
PY
# Output seen:
# float8_e4m3fn of float32 numbers, torch: 0.00% not the nearest, 0.39% not the nearest of float16's
# float8_e4m3fn of float32 numbers, onnxruntime: 0.00% not the nearest, 0.39% not the nearest of float16's
# float8_e4m3fn of float32 numbers, openvino: 0.39% not the nearest, 0.00% not the nearest of float16's
# float8_e4m3fn of float32 numbers, openvino_constant: 0.39% not the nearest, 0.00% not the nearest of float16's
# float8_e4m3fn of float16 numbers, torch: 0.00% not the nearest, 0.00% not the nearest of float16's
# float8_e4m3fn of float16 numbers, onnxruntime: 0.00% not the nearest, 0.00% not the nearest of float16's
# float8_e4m3fn of float16 numbers, openvino: 0.00% not the nearest, 0.00% not the nearest of float16's
# float8_e4m3fn of float16 numbers, openvino_constant: 0.00% not the nearest, 0.00% not the nearest of float16's
# float8_e5m2 of float32 numbers, torch: 0.00% not the nearest, 0.19% not the nearest of float16's
# float8_e5m2 of float32 numbers, onnxruntime: 0.00% not the nearest, 0.19% not the nearest of float16's
# float8_e5m2 of float32 numbers, openvino: 0.19% not the nearest, 0.00% not the nearest of float16's
# float8_e5m2 of float32 numbers, openvino_constant: 0.19% not the nearest, 0.00% not the nearest of float16's
# float8_e5m2 of float16 numbers, torch: 0.00% not the nearest, 0.00% not the nearest of float16's
# float8_e5m2 of float16 numbers, onnxruntime: 0.00% not the nearest, 0.00% not the nearest of float16's
# float8_e5m2 of float16 numbers, openvino: 0.00% not the nearest, 0.00% not the nearest of float16's
# float8_e5m2 of float16 numbers, openvino_constant: 0.00% not the nearest, 0.00% not the nearest of float16's
# 1.0625610: ml_dtypes 1.125, openvino 1.0
