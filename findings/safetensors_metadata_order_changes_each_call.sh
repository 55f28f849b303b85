#!/usr/bin/env bash
# Guess: safetensors writes the same tensors and metadata to the same bytes within one process (at
#   most the order of the metadata is drawn once a process).
# Version: safetensors 0.8.0, numpy 2.4.6.
# Came: with six metadata entries eight calls in a row gave up to eight different files; with one
#   entry, as transformers writes it ("format"), all are equal.
# Matters: whoever names artifacts by the hash of their files may hold one metadata entry at most, or
#   hash tensors instead of files.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q safetensors==0.8.0 numpy==2.4.6 2>/dev/null
venv/bin/python - <<'PY'
import hashlib, numpy
from safetensors.numpy import load, save

tensors = {"weight": numpy.ones(3, numpy.float32)}

def files(entries):
    made = [save(tensors, metadata={str(n): "x" for n in range(entries)}) for _ in range(8)]
    assert all((load(each)["weight"] == 1).all() for each in made)
    return len({hashlib.sha256(each).hexdigest() for each in made})

several = files(6)
print("six entries:", "more than one file" if several > 1 else "one file")
print("one entry:", files(1), "file")
assert several > 1 and files(1) == 1
PY
# Output seen:
# six entries: more than one file
# one entry: 1 file
