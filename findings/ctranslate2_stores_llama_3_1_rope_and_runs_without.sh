#!/usr/bin/env bash
# Guess: ctranslate2's converter knows the rope type "llama3" (Llama 3.1, 3.2 and 3.3), so its log-probabilities of such a model are
#   those of transformers to 1e-4, as they are without scaling and with the linear one.
# Versions: ctranslate2 4.8.5, transformers 5.24.0, torch 2.13.0 (CPU).
# File: tiny random Llamas in float32, converted without quantization; 300 random tokens; the parameters of Llama 3.1 and 3.2, and
#   the same with 64 instead of 8192 positions, so that nearly all frequencies are scaled.
# Came: the factors are in the converted file, and the model runs as if there were none: log-probabilities are those of the model
#   with the type "default" to 1e-4, and up to 7 nats from the one that was converted (0.6 within 48 tokens; 12 with 64 positions).
#   Nothing is said. The types "default" and "linear" come out right.
# Known: OpenNMT/CTranslate2#1745 asked for the type, which the converter refused then; that it has no effect was not found.
# Matters: perplexity of a Llama 3.1 or 3.2 by ctranslate2, int8 or not, is that of Llama 3.0's positions: short prompts look well,
#   the loss grows with the length, and it is not the quantization's. Random weights show it more strongly than trained ones.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.24.0 numpy==2.4.6 pyyaml==6.0.3 2>/dev/null
venv/bin/pip install -q --no-deps ctranslate2==4.8.5 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'PY' || { tail -5 log; exit 1; }
from pathlib import Path

import ctranslate2, numpy as np, torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_grad_enabled(False)
words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1", bos_token="w2")
ids = torch.randint(3, 64, (1, 300), generator=torch.Generator().manual_seed(1))

def llama(rope):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=131072, rope_parameters={"rope_theta": 500000.0, **rope},
    )).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1 if "norm" in name else 0, 0.1 if "norm" in name else 0.2)
    return model

def true(model):
    return model(ids).logits[0].log_softmax(-1)

def converted(model):
    model.save_pretrained("saved")
    tokenizer.save_pretrained("saved")
    ctranslate2.converters.TransformersConverter("saved").convert("converted", force=True)
    generator = ctranslate2.Generator("converted", compute_type="float32", intra_threads=1)
    tokens = [[f"w{n}" for n in ids[0].tolist()]]
    found = np.array(generator.forward_batch(tokens, return_log_probs=True), dtype=np.float32)[0]
    return torch.tensor(found), b"rotary_high_freq_factor" in Path("converted/model.bin").read_bytes()

def apart(one, other):
    return (one - other).abs().max().item()

default = true(llama({"rope_type": "default"}))
three = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
for name, rope in (
    ("default", {"rope_type": "default"}),
    ("linear", {"rope_type": "linear", "factor": 8.0}),
    ("Llama 3.1", {**three, "factor": 8.0, "original_max_position_embeddings": 8192}),
    ("Llama 3.2", {**three, "factor": 32.0, "original_max_position_embeddings": 8192}),
    ("64 positions", {**three, "factor": 8.0, "original_max_position_embeddings": 64}),
):
    model = llama(rope)
    found, stored = converted(model)
    print(f"{name}: from the converted model {apart(found, true(model)):.1e} ({apart(found[:48], true(model)[:48]):.1e} within 48 tokens), "
          f"from one without scaling {apart(found, default):.1e}; factors in the file {stored}")
    if name in ("default", "linear"):
        assert apart(found, true(model)) < 1e-3, name
    else:
        assert stored and apart(found, default) < 1e-3 < 1 < apart(found, true(model)), name
PY
if grep -iE "rope|rotary" log; then exit 1; fi
# Output seen:
# default: from the converted model 5.1e-05 (4.1e-05 within 48 tokens), from one without scaling 5.1e-05; factors in the file False
# linear: from the converted model 4.6e-05 (3.4e-05 within 48 tokens), from one without scaling 1.2e+01; factors in the file False
# Llama 3.1: from the converted model 7.3e+00 (5.5e-01 within 48 tokens), from one without scaling 5.1e-05; factors in the file True
# Llama 3.2: from the converted model 7.4e+00 (6.0e-01 within 48 tokens), from one without scaling 5.1e-05; factors in the file True
# 64 positions: from the converted model 1.2e+01 (1.1e+01 within 48 tokens), from one without scaling 5.1e-05; factors in the file True
