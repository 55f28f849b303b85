#!/usr/bin/env bash
# Guess: a model run with QuantizedCache at 2 bits gives other logits than without a cache, so that its perplexity over
#   a text, taken in one pass as usual, shows what the quantized cache costs.
# Versions: transformers 5.23.0, optimum-quanto 0.2.7, torch 2.13.0 (CPU).
# File: a tiny random Llama and 256 random tokens.
# Came: the logits of the whole pass are equal bit for bit, at 2 and at 4 bits: the first update stores quantized keys
#   and values and hands the unquantized ones to attention. Fed in two halves, the same text shows the loss, but the
#   first half is still free, and so are the last residual_length tokens.
# Matters: any suite that scores a text by one forward pass (perplexity, log-likelihoods of answers) reports the
#   quantized cache as lossless, whatever its bits.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 ninja 2>/dev/null
venv/bin/pip install -q --no-deps optimum-quanto==0.2.7 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, QuantizedCache

torch.manual_seed(0)
config = LlamaConfig(vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                     num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(0, 256, (1, 256))

def logits(cuts, bits=None):
    cache = QuantizedCache("quanto", config, nbits=bits, residual_length=1) if bits else None
    with torch.no_grad():
        return torch.cat([model(part, past_key_values=cache, use_cache=bits is not None).logits
                          for part in ids.split(cuts, 1)], 1)

full = logits(256)
for bits in (4, 2):
    one, two = logits(256, bits), logits(128, bits)
    first, second = (float((two - full)[:, part].norm() / full[:, part].norm())
                     for part in (slice(None, 128), slice(128, None)))
    print(f"{bits} bits: one pass equal {torch.equal(one, full)}; "
          f"in two halves, relative change of logits {first:.3f} and {second:.3f}")
    assert torch.equal(one, full) and first < 1e-5 and second > 0.02, (bits, first, second)
PY
# Output seen:
# 4 bits: one pass equal True; in two halves, relative change of logits 0.000 and 0.390
# 2 bits: one pass equal True; in two halves, relative change of logits 0.000 and 1.108
