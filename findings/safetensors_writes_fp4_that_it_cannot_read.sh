#!/usr/bin/env bash
# Guess: safetensors keeps torch's float4_e2m1fn_x2 (two values a byte): what save writes, load gives
#   back with the same dtype and shape [4, 8].
# Versions: safetensors 0.8.0, torch 2.13.0 (CPU).
# Came: save writes dtype F4 with the shape in values, [4, 16], and load of the very same bytes raises
#   KeyError 'F4'. E8M0, the scale type of MX formats, fails alike; E4M3 makes the round trip.
# Matters: FP4 weights and MX scales must be stored as uint8, as their quantizers do; a file that was written
#   without an error is no proof that it can be read.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 safetensors==0.8.0 numpy==2.4.6 packaging 2>/dev/null
venv/bin/python - <<'PY'
import json, struct, torch
from safetensors.torch import load, save

def header(data):
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["a"]

codes = torch.arange(32, dtype=torch.uint8).view(4, 8)
came = {}
for name in ("float4_e2m1fn_x2", "float8_e8m0fnu", "float8_e4m3fn"):
    data = save({"a": codes.view(getattr(torch, name))})
    try:
        came[name] = f"{load(data)['a'].dtype}"
    except KeyError as error:
        came[name] = f"KeyError {error}"
    print(f"{name} [4, 8] is written as {header(data)['dtype']} {header(data)['shape']}, read as {came[name]}")
assert list(came.values()) == ["KeyError 'F4'", "KeyError 'F8_E8M0'", "torch.float8_e4m3fn"], came
PY
# Output seen:
# float4_e2m1fn_x2 [4, 8] is written as F4 [4, 16], read as KeyError 'F4'
# float8_e8m0fnu [4, 8] is written as F8_E8M0 [4, 8], read as KeyError 'F8_E8M0'
# float8_e4m3fn [4, 8] is written as F8_E4M3 [4, 8], read as torch.float8_e4m3fn
