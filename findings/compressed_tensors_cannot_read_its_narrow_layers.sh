#!/usr/bin/env bash
# Guess: what compressed-tensors packs it unpacks, whatever the number of outputs of a layer: one output or 8 as well as 9
#   or 4,096, symmetric or not, at 3, 4 and 8 bits.
# Versions: compressed-tensors 0.20.1, transformers 5.23.0, torch 2.13.0 (CPU).
# File: a linear layer of 64 inputs in groups of 32, format pack-quantized; compress and decompress of its own compressor.
# Came: 4 bits asymmetric with 8 outputs or fewer is written without a word, and cannot be read: "self.stride(-1) must be 1 to
#   view Int as Byte". Its zero-points fit one 32-bit word along the outputs; one row transposed counts as contiguous, so
#   the copy that the shortcut for 4 bits relies on is not made. 3 and 8 bits, symmetric layers and 9 outputs are right.
# Known: torch says that this is its rule (pytorch#159932); of compressed-tensors nothing was found.
# Matters: routers of 8 experts (Mixtral), gates of one output (Qwen's shared expert), heads of classifiers and reward models
#   are such layers; a recipe that does not list them as ignored ends, after hours, in a checkpoint that does not
#   load, and the message names no layer. 4 bits asymmetric is the usual preset of AWQ.
# Helps: to ignore layers of 8 outputs or fewer, which have little to save, or make them symmetric.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6 loguru==0.7.3 pydantic==2.14.3 psutil accelerate==1.15.0 2>/dev/null
venv/bin/pip install -q --no-deps compressed-tensors==0.20.1 2>/dev/null
cat > run.py <<'PY'
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

draw = torch.Generator().manual_seed(0)
seen = {}
for bits in (3, 4, 8):
    for symmetric in (True, False):
        said = []
        for outputs in (1, 4, 8, 9, 64):
            args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=32)
            scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
            half = 1 << (bits - 1)
            codes = torch.randint(-half, half, (outputs, 64), generator=draw)
            zeros = torch.zeros(outputs, 2) if symmetric else torch.randint(-half, half, (outputs, 2), generator=draw)
            scale = torch.full((outputs, 2), 0.125)
            weight = ((codes.view(outputs, 2, 32) - zeros[..., None]) * scale[..., None]).view(outputs, 64)
            state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zeros.to(torch.int8)}
            packed = PackedQuantizationCompressor.compress(state, scheme)
            try:
                back = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
            except RuntimeError as error:
                text = str(error)
                seen[bits, symmetric, outputs] = "unreadable"
            else:
                assert torch.equal(back.float(), weight.float()), (bits, symmetric, outputs)
                seen[bits, symmetric, outputs] = "exact"
            said.append(f"{outputs} outputs {seen[bits, symmetric, outputs]}")
        print(f"FOUND {bits} bits, {'symmetric' if symmetric else 'asymmetric'}: {', '.join(said)}")
print("FOUND RuntimeError:", text)
unreadable = {key for key, value in seen.items() if value == "unreadable"}
assert unreadable == {(4, False, outputs) for outputs in (1, 4, 8)}, unreadable
assert "stride(-1) must be 1" in text
PY
env OMP_NUM_THREADS=1 venv/bin/python run.py > log 2>errors || { grep FOUND log; tail -5 errors; exit 1; }
grep FOUND log
# Output seen:
# FOUND 3 bits, symmetric: 1 outputs exact, 4 outputs exact, 8 outputs exact, 9 outputs exact, 64 outputs exact
# FOUND 3 bits, asymmetric: 1 outputs exact, 4 outputs exact, 8 outputs exact, 9 outputs exact, 64 outputs exact
# FOUND 4 bits, symmetric: 1 outputs exact, 4 outputs exact, 8 outputs exact, 9 outputs exact, 64 outputs exact
# FOUND 4 bits, asymmetric: 1 outputs unreadable, 4 outputs unreadable, 8 outputs unreadable, 9 outputs exact, 64 outputs exact
# FOUND 8 bits, symmetric: 1 outputs exact, 4 outputs exact, 8 outputs exact, 9 outputs exact, 64 outputs exact
# FOUND 8 bits, asymmetric: 1 outputs exact, 4 outputs exact, 8 outputs exact, 9 outputs exact, 64 outputs exact
# FOUND RuntimeError: self.stride(-1) must be 1 to view Int as Byte (different element sizes), but got 2
