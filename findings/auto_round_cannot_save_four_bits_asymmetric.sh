#!/usr/bin/env bash
# Guess: a model that AutoRound quantized to 4 bits with sym=False is saved in its own format, format="auto_round", as
#   one with sym=True is, and as 3 bits are.
# Versions: auto-round 0.15.1, transformers 5.17.0, torch 2.13.0 (CPU).
# File: a tiny random Llama, groups of 32, no iterations, four windows of token ids; only bits and sym differ.
# Came: 4 bits symmetric and 3 bits asymmetric are saved. 4 bits asymmetric is quantized, and then lost: "auto_round"
#   packs it as AWQ, by a class without the argument weight_dtype that the exporter passes: TypeError.
# Matters: the error comes after the quantization, which took hours; nothing is written but the model in memory is gone.
# Helps: format="auto_round:gptqmodel" saves the same model, as does format="auto_gptq".
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.17.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6 py-cpuinfo==9.0.0 pydantic==2.14.4 pillow==13.0.0 2>/dev/null
venv/bin/pip install -q --no-deps auto-round==0.15.1 2>/dev/null
cat > run.py <<'PY'
import sys

import torch
from auto_round import AutoRound
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

bits, symmetric, form = int(sys.argv[1]), sys.argv[2] == "symmetric", sys.argv[3]
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)).eval()
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1")
rounding = AutoRound(
    model, tokenizer, bits=bits, group_size=32, sym=symmetric, iters=0, seqlen=16, nsamples=4, batch_size=1,
    dataset=[{"input_ids": torch.randint(2, 64, (1, 16))} for _ in range(4)], device_map="cpu",
    enable_torch_compile=False,
)
rounding.quantize()
try:
    rounding.save_quantized("saved", format=form)
except TypeError as error:
    print("FOUND", bits, sys.argv[2], form, "TypeError:", error)
else:
    print("FOUND", bits, sys.argv[2], form, "saved")
PY
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
: > found
for case in "4 symmetric auto_round" "3 asymmetric auto_round" "4 asymmetric auto_round" "4 asymmetric auto_round:gptqmodel"; do
  rm -rf saved; venv/bin/python run.py $case > log 2>&1 || { tail -5 log; exit 1; }
  grep FOUND log | tee -a found
done
[ "$(grep -c ' saved$' found)" = 3 ]
grep -q "4 asymmetric auto_round TypeError:.*unexpected keyword argument 'weight_dtype'" found
