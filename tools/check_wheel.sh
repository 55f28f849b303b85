#!/usr/bin/env bash
# Build the wheel, install it without the checkout in sight, and run one cell from an empty folder.
set -euo pipefail
repo="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$repo/.venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$repo"
# The dependencies are those of .venv, already pinned there; only Bitsweep itself is installed anew.
"$repo/.venv/bin/python" -m venv "$work/venv"
site="$("$repo/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
here="$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
"$work/venv/bin/python" -m pip install --quiet --no-deps "$work"/dist/bitsweep-*.whl
# addsitedir would run the editable install's .pth as well, so the path is appended plainly, last.
echo "$site" > "$here/zz_dependencies.pth"

mkdir "$work/empty" && cd "$work/empty"
"$work/venv/bin/python" - "$repo" <<'PY'
import sys
from pathlib import Path
import bitsweep, harness, quant, cuda_ext
repo = Path(sys.argv[1])
for package in (bitsweep, harness, quant, cuda_ext):
    assert Path(package.__file__).with_name("py.typed").is_file(), package.__file__
    assert repo not in Path(package.__file__).parents or ".venv" in package.__file__, package.__file__
    assert "site-packages" in package.__file__, package.__file__
PY
"$work/venv/bin/bitsweep" run scheme=w4 method=rtn suite=[perplexity_quick] tracker=none
test -n "$(find results/cells -name '*.json')" || { echo "no records were written"; exit 1; }
echo "wheel: one cell ran from an empty folder"
