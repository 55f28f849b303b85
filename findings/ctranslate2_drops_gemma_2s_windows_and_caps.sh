#!/usr/bin/env bash
# Guess: ctranslate2's converter has Gemma2Config, so a Gemma 2 gives the log-probabilities of transformers to 1e-4, or is
#   refused where something of it is missing.
# Versions: ctranslate2 4.8.5, transformers 5.23.0, torch 2.13.0 (CPU).
# File: tiny random models in float32, converted without quantization; 48 random tokens. Gemma 2 has three features beyond
#   Gemma: attention over a sliding window in every other layer, soft caps of scores (50) and of logits (30).
# Came: without all three, equal to 1e-5. Each is dropped without a word: with the final cap log-probabilities differ by
#   up to 4 nats and the mean by 2 (logits up to 23, as real models have them), with a window of 16 by up to 5 (it is 4,096
#   in the real ones), with the cap of scores by 0.3.
# Known: nothing was found; engines that left these out at first (vLLM) said so by a warning and a shorter context.
# Matters: a perplexity by ctranslate2 is another model's, before int8 is looked at: the cap flattens every distribution,
#   and without it the model is too sure. Greedy texts hide the final cap, as it keeps the order.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6 ctranslate2==4.8.5 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import ctranslate2
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

torch.set_grad_enabled(False)
tokens = torch.randint(2, 64, (1, 48), generator=torch.Generator().manual_seed(0))
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
PLAIN = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 4096}


def off(number, **given):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, max_position_embeddings=256,
        initializer_range=0.35, bos_token_id=1, eos_token_id=1, pad_token_id=0, attn_implementation="eager",
        **PLAIN | given)
    model = Gemma2ForCausalLM(config).float().eval()
    model.save_pretrained(f"model{number}")
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w1", unk_token="w0").save_pretrained(f"model{number}")
    ctranslate2.converters.TransformersConverter(f"model{number}").convert(f"converted{number}")
    generator = ctranslate2.Generator(f"converted{number}", device="cpu", intra_threads=1)
    logits = torch.from_numpy(np.array(generator.forward_batch([[f"w{i}" for i in tokens[0].tolist()]]))[0])
    here = model(tokens).logits[0]
    logs, right = (torch.log_softmax(each.float(), -1)[:-1].gather(1, tokens[0, 1:, None]) for each in (logits, here))
    whole = (torch.log_softmax(logits, -1) - torch.log_softmax(here, -1)).abs().max()
    return float(logits.abs().max()), float(whole), float(-right.mean()), float(-logs.mean())


seen = {}
for number, (name, given) in enumerate({
    "without the three": {}, "final cap 30": {"final_logit_softcapping": 30.0},
    "cap of scores 50": {"attn_logit_softcapping": 50.0}, "window 16": {"sliding_window": 16},
}.items()):
    largest, seen[name], right, found = off(number, **given)
    print(f"{name}: largest logit {largest:.1f}; log-probabilities differ by up to {seen[name]:.5f}; nats a token "
          f"{right:.3f} in transformers, {found:.3f} in ctranslate2", flush=True)
assert seen["without the three"] < 1e-3, seen
assert min(value for name, value in seen.items() if name != "without the three") > 0.05, seen
PY
# Output seen:
# without the three: largest logit 23.5; log-probabilities differ by up to 0.00001; nats a token 18.005 in transformers, 18.005 in ctranslate2
# final cap 30: largest logit 23.5; log-probabilities differ by up to 3.97812; nats a token 15.951 in transformers, 18.005 in ctranslate2
# cap of scores 50: largest logit 23.5; log-probabilities differ by up to 0.26366; nats a token 17.997 in transformers, 18.005 in ctranslate2
# window 16: largest logit 23.5; log-probabilities differ by up to 5.21097; nats a token 17.940 in transformers, 18.005 in ctranslate2
