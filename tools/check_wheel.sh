#!/usr/bin/env bash
# Install the wheel without the checkout in sight and run it from an empty folder, on a machine as it
# is and on one without a compiler:
#   tools/check_wheel.sh [WHEEL]     without WHEEL, `python -m tools.dist` builds it
# PYTHON names the interpreter whose packages are the dependencies (default: that of .venv).
set -euo pipefail
repo="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$repo/.venv/bin/python}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

wheel="${1:-}"
if [ -z "$wheel" ]; then
  (cd "$repo" && "$python" -m tools.dist --outdir "$work/dist")
  wheel="$(echo "$work"/dist/bitsweep-*.whl)"
fi

# The dependencies are those of .venv, already pinned there; only Bitsweep itself is installed anew.
"$python" -m venv "$work/venv"
purelib='import sysconfig; print(sysconfig.get_paths()["purelib"])'
here="$("$work/venv/bin/python" -c "$purelib")"
"$work/venv/bin/python" -m pip install --quiet --no-deps "$wheel"
# addsitedir would run the editable install's .pth as well, so the path is appended plainly, last.
"$python" -c "$purelib" > "$here/zz_dependencies.pth"

mkdir "$work/empty" && cd "$work/empty"
"$work/venv/bin/python" - "$here" <<'PY'
import sys
from pathlib import Path
import bitsweep, cuda_ext, harness, quant
for package in (bitsweep, harness, quant, cuda_ext):
    assert Path(sys.argv[1]) in Path(package.__file__).parents, package.__file__
PY

fail() { echo "wheel: $1" >&2; exit 1; }
# A machine without compilers has nothing but the interpreter on its PATH.
without() {
  env -u CXX -u NVCC -u CUDA_HOME -u CUDA_PATH PATH="$work/venv/bin" \
    BITSWEEP_CACHE="$work/without" bitsweep "$@"
}
cache="${BITSWEEP_CACHE:-$work/cache}"
as_is() { env PATH="$work/venv/bin:$PATH" BITSWEEP_CACHE="$cache" bitsweep "$@"; }
cell() {  # MACHINE NAME: run a small cell there into the folder NAME
  "$1" run scheme=w4 method=rtn 'suite=[perplexity_quick]' suite.perplexity.max_windows=8 \
    tracker=none "paths.results=$2"
  test -n "$(find "$2/cells" -name 'perplexity-*.json')" || fail "no record in $2"
}
kernel_of() { grep -rhoE '"kernel": "(cpu|cuda|reference)"' "$1/cells" | sort -u; }
builds() { find "$cache/kernels" -name build.json -printf '%p %T@\n' | sort; }

said="$(without doctor)" || fail "doctor does not run without a compiler: $said"
[[ "$said" =~ "kernel auto"\ +"reference on" ]] || fail "not the reference kernel: $said"
[[ "$said" == *"no C++ compiler"*"apt install g++"* ]] || fail "doctor names no remedy: $said"
if without run scheme=w4 runtime.kernel=cpu tracker=none 2> refused; then
  fail "runtime.kernel=cpu ran without a compiler"
fi
[[ "$(< refused)" == *"no C++ compiler"* ]] || fail "no reason was given: $(< refused)"
cell without none
[ "$(kernel_of none)" = '"kernel": "reference"' ] || fail "a record names another kernel"
echo "wheel: without a compiler a cell ran on the reference kernel"

cell as_is first
[[ "$(kernel_of first)" =~ cpu|cuda ]] || fail "the kernels were not built"
built="$(builds)"
cell as_is second
[ "$built" = "$(builds)" ] || fail "the kernels were built twice"
echo "wheel: cells ran from an empty folder on kernels that were built once"
