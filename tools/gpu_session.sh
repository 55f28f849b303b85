#!/usr/bin/env bash
# Everything that needs a GPU, in sections that fit a call of ten minutes each:
#   tools/gpu_session.sh                        device build test spread sanitize bench
#   tools/gpu_session.sh device build bench     only these sections; then, in calls of their own,
#   tools/gpu_session.sh test                   sanitize, bench-batches crossover, bench-all,
#                                               decode, solver
#   tools/gpu_session.sh --dry-run [sections]   all, or these, without a GPU: the same modules with
#                                               the same arguments, then the smallest there are
# Needs torch, transformers, pytest and hypothesis; OUT is the folder of tables and log (default
# results/gpu, of a dry run none that stays), PYTHON the interpreter. A section that fails or
# outlasts its limit does not stop the next, nor does a run inside one.
set -uo pipefail
cd "$(dirname "$0")/.."
DRY_RUN=
if [ "${1:-}" = --dry-run ]; then DRY_RUN=--dry-run; shift; fi
if [ -n "$DRY_RUN" ] && [ -z "${OUT:-}" ]; then
  OUT="$(mktemp -d)"
  trap 'rm -rf "$OUT"' EXIT
fi
export OUT="${OUT:-results/gpu}"
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
SECTIONS="device build test spread sanitize bench bench-batches bench-all crossover decode solver"
# Every test that needs a GPU is in one of these; others import packages that may not be there.
GPU_TESTS="tests/cuda_ext tests/quant/decode/test_decode.py tests/quant/test_linear.py
  tests/quant/test_products.py tests/quant/solvers/test_columns.py"
# Of two GPUs or more; with one they are skipped, and say so.
SPREAD_TESTS="tests/quant/spread/test_gpus.py tests/test_two_gpus.py"
PAPER="opt-175b,llama-70b-up,llama-70b-down,llama-8b-up"

# What a dry run adds to a command. Of an option that is given twice the last counts.
SMALL_TEST=() SMALL_SANITIZE=() SMALL_BENCH=() SMALL_DECODE=() SMALL_SOLVER=()
if [ -n "$DRY_RUN" ]; then
  export OMP_NUM_THREADS=1  # threads that wait for each other are slow on a busy machine
  SMALL_TEST=(--collect-only -q)
  SMALL_SANITIZE=(--launch --device cpu)
  SMALL_BENCH=(--device cpu --shapes 512x256 --batches 1 --bits 4 --seconds 0.001)
  SMALL_DECODE=(--device cpu --kernel cpu --architecture "$OUT/tiny.json" --prompt 2 --tokens 2
    --repeats 1)
  SMALL_SOLVER=(--device cpu --kernel cpu --shape tiny)
fi
TINY='{"model_type": "opt", "hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 256,
  "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
  "max_position_embeddings": 16}'

bench() {  # bench FILE arguments...
  local file="$OUT/$1"
  shift
  "$PYTHON" -m cuda_ext.bench --device cuda --json "$file" "$@" "${SMALL_BENCH[@]}"
}

limited() {  # limited SECONDS arguments...: Python with these, at most so long
  local seconds="$1"
  shift
  timeout -k 10 "$seconds" "$PYTHON" "$@" && return
  local status=$?
  echo "gpu_session: python $* ended with $status (124: over its $seconds s)" >&2
  return "$status"
}

decode() {  # decode SECONDS ARCHITECTURE BITS
  [ -z "$DRY_RUN" ] || echo "$TINY" >"$OUT/tiny.json"
  limited "$1" -m benchmarks.decode --device cuda --kernel cuda --architecture "$2" \
    --bits "$3" --json "$OUT/decode-$2.json" "${SMALL_DECODE[@]}"
}

solver() {  # solver SECONDS SHAPE
  limited "$1" -m benchmarks.gpu_solver --device cuda --kernel cuda --shape "$2" \
    --json "$OUT/solver-$2.json" "${SMALL_SOLVER[@]}"
}

section() {
  case "$1" in
    device) [ -n "$DRY_RUN" ] || nvidia-smi --format=csv \
              --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,temperature.gpu
            "$PYTHON" -c 'import sys, torch; from cuda_ext import toolchain as t
compiler = t.find_compiler if sys.argv[1:] else t.find_nvcc
print("torch", torch.__version__, "CUDA", torch.version.cuda, "driver", t.driver(),
      "capabilities", t.visible_capabilities(), t.short_version(compiler()))' $DRY_RUN ;;
    build)  "$PYTHON" -c 'import sys; from cuda_ext import packed
library = packed.load(); print(library)
raise SystemExit(None if sys.argv[1:] else library.without_cuda)' $DRY_RUN ;;
    test)   "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider $GPU_TESTS "${SMALL_TEST[@]}" ;;
    spread) "$PYTHON" -m pytest -q -rs -m gpu -p no:cacheprovider $SPREAD_TESTS "${SMALL_TEST[@]}" ;;
    sanitize)      "$PYTHON" tools/sanitize.py memcheck racecheck synccheck initcheck \
                     "${SMALL_SANITIZE[@]}" ;;
    bench)         bench kernels.json --shapes "$PAPER" --batches 1,16,64 --bits 2,3,4 --seconds 1 ;;
    bench-batches) bench batches.json --shapes llama-8b-up,llama-70b-up --bits 4 --seconds 0.1 \
                     --batches "$(seq -s, 1 64)" ;;
    bench-all)     bench all.json --shapes all --batches 1,2,4,8,16,32,64 --bits 2,3,4,8 \
                     --seconds 0.5 ;;
    crossover)     bench crossover.json --crossover --shapes llama-8b-up,opt-175b-q --bits 3,4 ;;
    decode) local failed=0
            decode 270 opt-66b 16,4,3 || failed=1
            decode 240 opt-175b 3 || failed=1
            return "$failed" ;;
    solver) local failed=0
            solver 240 opt-175b || failed=1
            solver 270 opt-13b || failed=1
            return "$failed" ;;
  esac
}

limit() {  # seconds
  case "$1" in
    device) echo 60 ;; build) echo 240 ;; test) echo 420 ;; spread) echo 180 ;; sanitize) echo 420 ;;
    bench) echo 240 ;; crossover) echo 120 ;; *) echo 540 ;;
  esac
}

if [ "${1:-}" = --section ]; then section "$2"; exit; fi
wanted=("$@")
[ $# -gt 0 ] || wanted=(${DRY_RUN:+$SECTIONS})
[ ${#wanted[@]} -gt 0 ] || wanted=(device build test spread sanitize bench)
for name in "${wanted[@]}"; do
  case " $SECTIONS " in
    *" $name "*) ;;
    *) echo "gpu_session: section $name is unknown; choose of $SECTIONS." >&2; exit 2 ;;
  esac
done
"$PYTHON" - $DRY_RUN <<'PY' || exit 2
import sys
try:
    import torch
except ModuleNotFoundError:
    sys.exit("gpu_session: this Python has no torch; set PYTHON to one that has.")
if not sys.argv[1:] and not torch.cuda.is_available():
    sys.exit(f"gpu_session: no GPU: PyTorch sees no CUDA device here (torch {torch.__version__}).")
PY

mkdir -p "$OUT"
summary="" failed=0
for name in "${wanted[@]}"; do
  printf '\n== %s (at most %s s)\n' "$name" "$(limit "$name")"
  began=$SECONDS
  # A shell of its own, so that the limit stops the whole section.
  timeout -k 10 "$(limit "$name")" bash "$0" $DRY_RUN --section "$name" 2>&1 | tee -a "$OUT/session.log"
  status=${PIPESTATUS[0]}
  case "$status" in
    0) result=ok ;; 124|137) result="over its limit" failed=1 ;; *) result="failed ($status)" failed=1 ;;
  esac
  summary+="$(printf '%-14s %5s s  %s' "$name" "$((SECONDS - began))" "$result")"$'\n'
done
printf '\n%s' "$summary" | tee -a "$OUT/session.log"
exit "$failed"
