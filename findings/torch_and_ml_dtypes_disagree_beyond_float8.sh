#!/usr/bin/env bash
# Guess: torch and ml_dtypes (what JAX uses) cast float32 to the float8 types alike: e4m3fn beyond 448
#   becomes NaN, as the type has no infinity; e8m0 of a negative number is NaN, as it has no sign.
# Versions: torch 2.13.0 (CPU), ml_dtypes 0.6.0.
# Came: within the range they agree on 100000 numbers, ties included. Beyond it torch saturates e4m3fn
#   to 448, infinity too, where ml_dtypes gives NaN, while e5m2 becomes infinite in both and
#   e4m3fnuz NaN in both. torch casts -2 to the e8m0 scale +2 and 0 to 2^-127; ml_dtypes gives NaN.
# Matters: block scales cast by torch never show that they overflowed, or that a sign was lost, and
#   one code in two frameworks gives finite weights here and NaN there.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6 2>/dev/null
venv/bin/python - <<'PY'
import ml_dtypes, numpy as np, torch

def casts(values, name):
    values = np.array(values, np.float32)
    mine = torch.from_numpy(values).to(getattr(torch, name)).float().numpy()
    return mine, values.astype(getattr(ml_dtypes, name)).astype(np.float32)

random = np.random.default_rng(0)
inside = {"float8_e4m3fn": 448, "float8_e5m2": 57344, "float8_e8m0fnu": 1e38}
for name, largest in inside.items():
    values = np.exp(random.uniform(-12, np.log(largest), 100000))
    mine, theirs = casts(values, name)
    print(f"{name} up to {largest:g}: {np.mean(mine != theirs):.0%} differ")
    assert (mine == theirs).all()
seen = {}
for name, values in {"float8_e4m3fn": [1e4, np.inf], "float8_e4m3fnuz": [1e4, np.inf],
                     "float8_e5m2": [1e6, np.inf], "float8_e8m0fnu": [-2, 0]}.items():
    mine, theirs = (list(map(float, found)) for found in casts(values, name))
    seen[name] = str((mine, theirs))
    print(f"{name} of {list(map(float, values))}: torch {mine}, ml_dtypes {theirs}")
assert seen["float8_e4m3fn"] == "([448.0, 448.0], [nan, nan])"
assert seen["float8_e4m3fnuz"] == "([nan, nan], [nan, nan])"
assert seen["float8_e5m2"] == "([inf, inf], [inf, inf])"
assert seen["float8_e8m0fnu"] == "([2.0, 5.877471754111438e-39], [nan, nan])"
PY
# Output seen:
# float8_e4m3fn up to 448: 0% differ
# float8_e5m2 up to 57344: 0% differ
# float8_e8m0fnu up to 1e+38: 0% differ
# float8_e4m3fn of [10000.0, inf]: torch [448.0, 448.0], ml_dtypes [nan, nan]
# float8_e4m3fnuz of [10000.0, inf]: torch [nan, nan], ml_dtypes [nan, nan]
# float8_e5m2 of [1000000.0, inf]: torch [inf, inf], ml_dtypes [inf, inf]
# float8_e8m0fnu of [-2.0, 0.0]: torch [2.0, 5.877471754111438e-39], ml_dtypes [nan, nan]
