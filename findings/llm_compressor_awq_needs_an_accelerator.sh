#!/usr/bin/env bash
# Guess: oneshot with AWQModifier runs on a machine without an accelerator, slowly, as it does with GPTQModifier there.
# Versions: llm-compressor 0.14.0.1, compressed-tensors 0.19.0, transformers 5.17.0, torch 2.13.0 (CPU build).
# File: a tiny random Llama and eight windows of token ids; only the modifier differs.
# Came: GPTQ runs. AWQ stops at the first layer with "Cannot access accelerator device when none is available.": it pins
#   cached activations for copies to a device, and torch's pin_memory raises where there is none.
# Matters: the text names no device that was asked for, and GPTQ before it on the same machine worked.
# Helps: a pin_memory that returns its tensor unchanged: pinning only speeds copies that do not happen.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.17.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6 py-cpuinfo==9.0.0 pydantic==2.14.4 pillow==13.0.0 loguru==0.7.3 psutil==7.2.2 nvidia-ml-py==13.615.71 requests==2.34.2 2>/dev/null
venv/bin/pip install -q --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 auto-round==0.15.1 2>/dev/null
cat > run.py <<'PY'
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

assert not torch.accelerator.is_available(), "this finding is of a machine without an accelerator"
if sys.argv[1] == "awq-unpinned":
    torch.Tensor.pin_memory = lambda tensor: tensor
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)).save_pretrained("tiny")
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1")
tokenizer.save_pretrained("tiny")
model = LlamaForCausalLM.from_pretrained("tiny", dtype=torch.float32).eval()
grid = QuantizationArgs(num_bits=4, group_size=32, strategy="group", symmetric=False)
said = {"config_groups": {"g": QuantizationScheme(targets=["Linear"], weights=grid)}, "ignore": ["lm_head"]}
recipe = [GPTQModifier(**said)] if sys.argv[1] == "gptq" else [AWQModifier(), QuantizationModifier(**said)]
ids = torch.randint(2, 64, (8, 16)).tolist()
rows = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * 16} for row in ids])
try:
    oneshot(model=model, tokenizer=tokenizer, dataset=rows, recipe=recipe, max_seq_length=16,
            num_calibration_samples=8)
except RuntimeError as error:
    print("FOUND", sys.argv[1], "RuntimeError:", error)
else:
    print("FOUND", sys.argv[1], "quantized")
PY
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
: > found
for case in gptq awq awq-unpinned; do
  venv/bin/python run.py $case > log 2>&1 || { tail -5 log; exit 1; }
  grep FOUND log | tee -a found
done
grep -q "gptq quantized" found
grep -q "awq RuntimeError: Cannot access accelerator device when none is available" found
grep -q "awq-unpinned quantized" found
