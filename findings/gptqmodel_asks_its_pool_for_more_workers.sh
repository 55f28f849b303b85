#!/usr/bin/env bash
# Guess: GPTQModel loads a model on a machine with two processor cores, or with GPTQMODEL_CPU_WORKERS=1, more slowly.
# Versions: GPTQModel 7.7.0, transformers 5.17.0, torch 2.13.0 (CPU build).
# File: a tiny random Llama with a tokenizer, saved by transformers; only the number of workers differs.
# Came: with two workers it loads. With one it stops before the first tensor: "Virtual pool 'model_loader:cpu' requests
#   2 workers but parent 'cpu' only has 1". One worker is also its own choice on one or two cores (half of them, rounded
#   up), so that nothing can be loaded there unless the variable is set.
# Matters: small virtual machines and continuous integration have two cores; the message names none of them.
# Helps: GPTQMODEL_CPU_WORKERS=2.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.17.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6 pillow==13.0.0 protobuf==7.36.2 requests==2.34.2 2>/dev/null
venv/bin/pip install -q --no-deps gptqmodel==7.7.0 Defuser==0.0.28 Device-SMI==0.5.7 LogBar==0.4.15 PyPcre==0.6.4 threadpoolctl==3.8.0 TokeNicer==0.0.14 torchao==0.18.0 2>/dev/null
cat > run.py <<'PY'
import os
import sys

os.environ["GPTQMODEL_CPU_WORKERS"] = sys.argv[1]
import torch
from gptqmodel import GPTQModel, QuantizeConfig
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)).save_pretrained("tiny")
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained("tiny")
try:
    GPTQModel.load("tiny", QuantizeConfig(bits=4, group_size=32), device="cpu")
except ValueError as error:
    print("FOUND", sys.argv[1], "ValueError:", error)
else:
    print("FOUND", sys.argv[1], "loaded")
PY
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
: > found
for workers in 2 1; do
  venv/bin/python run.py $workers > log 2>&1 || { tail -5 log; exit 1; }
  grep FOUND log | tee -a found
done
grep -q "2 loaded" found
grep -q "1 ValueError: Virtual pool 'model_loader:cpu' requests 2 workers but parent 'cpu' only has 1" found
