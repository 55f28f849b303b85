#!/usr/bin/env bash
# Guess: sum and mean of a NumPy array of ml_dtypes.int4 widen as those of int8 do: the sum of 300 ones is the
#   int64 300 and their mean 1.0; JAX, whose type it is, says the same.
# Versions: ml_dtypes 0.6.0, numpy 2.4.6, jax 0.10.2.
# Came: everything stays in int4 and wraps: 300 ones have the sum -4, the mean 0, and nothing
#   is raised; bfloat16 stops at 256 in the same way, so that the mean of ones is 0.85. The maximum is right,
#   but its dtype is int8. JAX gives the mean 1.0, and cannot add int4 at all (ValueError).
# Matters: a check of unpacked 4-bit codes or of bfloat16 weights (mean, histogram, checksum by sum) is meaningless in
#   NumPy before a cast; np.int8 and np.float16 have trained everybody to trust it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q ml_dtypes==0.6.0 numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import jax.numpy as jnp, ml_dtypes, numpy as np

found = {}
for name, kind in (("int4", ml_dtypes.int4), ("int8", np.int8), ("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
    ones = np.ones(300, np.int8).astype(kind)
    found[name] = [float(ones.sum()), float(ones.mean())]
    total, mean = found[name]
    print(f"300 ones of {name}: sum {total:g} ({ones.sum().dtype}), mean {mean:.4g}, "
          f"maximum {ones.max()} ({ones.max().dtype})")
four = jnp.ones(300, jnp.int4)
try:
    total = str(four.sum())
except ValueError:
    total = "ValueError"
print(f"300 ones of int4 in JAX: sum {total}, mean {four.mean()}")
assert found["int4"] == [-4, 0] and found["float16"] == found["int8"] == [300, 1], found
assert found["bfloat16"][0] == 256 and found["bfloat16"][1] < 0.9, found
assert str(np.ones(3, np.int8).astype(ml_dtypes.int4).max().dtype) == "int8"
assert total == "ValueError" and four.mean() == 1
PY
# Output seen:
# 300 ones of int4: sum -4 (int4), mean 0, maximum 1 (int8)
# 300 ones of int8: sum 300 (int64), mean 1, maximum 1 (int8)
# 300 ones of bfloat16: sum 256 (bfloat16), mean 0.8516, maximum 1.0 (bfloat16)
# 300 ones of float16: sum 300 (float16), mean 1, maximum 1.0 (float16)
# 300 ones of int4 in JAX: sum ValueError, mean 1.0
