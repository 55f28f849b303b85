#!/usr/bin/env bash
# Guess: mx.load of a GGUF file with a tensor of a type that MLX does not know raises, naming the type, as it does for
#   Q5_0; at worst that one tensor is missing.
# Versions: mlx 0.32.4 on its CPU backend (mlx-cpu 0.32.4), gguf 0.19.0 (writes and reads the files), numpy 2.4.6.
# File: three float32 tensors, and between the first and the second one of another type, each written by gguf's quantizer.
# Came: MXFP4 (the type of gpt-oss), NVFP4, TQ1_0 and TQ2_0 end the reading without a word: load returns what lies before
#   that tensor and none of what lies behind it, float32 or not. Q5_0 and IQ4_NL raise; Q4_0 and Q8_0 are read whole.
# Matters: one tensor in MXFP4 loses the rest of the model. A loader that fills missing weights, or an audit that sums
#   over what it finds, goes on with a part.
# Helps: to compare the names with those that gguf.GGUFReader lists.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6 gguf==0.19.0 'mlx[cpu]==0.32.4' mlx-cpu==0.32.4 2>/dev/null
venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import gguf
import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
weight = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
plain = np.ones((2, 2), np.float32)


def codes(kind):
    if kind.name not in ("IQ4_NL", "NVFP4"):
        return gguf.quants.quantize(weight, kind)
    values, size = gguf.GGML_QUANT_SIZES[kind]  # gguf reads these two and does not write them: zeros are valid blocks
    return np.zeros((4, 512 // values * size), np.uint8)


seen = {}
for name in ("Q4_0", "Q8_0", "Q5_0", "IQ4_NL", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"):
    kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter("file.gguf", "llama")
    writer.add_tensor("first", plain)
    writer.add_tensor("second", codes(kind), raw_dtype=kind)
    writer.add_tensor("third", plain)
    writer.add_tensor("fourth", plain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.GGUFReader("file.gguf")
    assert [tensor.name for tensor in file.tensors] == ["first", "second", "third", "fourth"]
    assert np.isfinite(gguf.quants.dequantize(file.tensors[1].data, kind)).all()
    try:
        found = mx.load("file.gguf")
        seen[name] = sorted({"first", "second", "third", "fourth"} - set(found)) or "nothing"
        print(f"{name}: missing {seen[name]}")
    except (RuntimeError, ValueError) as error:
        seen[name] = "raises"
        print(f"{name}: {type(error).__name__}: {error}")
assert seen["Q4_0"] == seen["Q8_0"] == "nothing" and seen["Q5_0"] == seen["IQ4_NL"] == "raises", seen
assert all(seen[name] == ["fourth", "second", "third"] for name in ("MXFP4", "NVFP4", "TQ1_0", "TQ2_0")), seen
PY
# Output seen:
# Q4_0: missing nothing
# Q8_0: missing nothing
# Q5_0: RuntimeError: [load_gguf] gguf_tensor_to_f16 failed
# IQ4_NL: RuntimeError: [load_gguf] gguf_tensor_to_f16 failed
# MXFP4: missing ['fourth', 'second', 'third']
# NVFP4: missing ['fourth', 'second', 'third']
# TQ1_0: missing ['fourth', 'second', 'third']
# TQ2_0: missing ['fourth', 'second', 'third']
