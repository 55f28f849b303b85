#!/usr/bin/env bash
# Guess: torchmetrics' Perplexity works in float32 or better whatever the logits are in, as it stores a float32 sum:
#   logits of a model in float16 or bfloat16 give the perplexity of these logits to four digits.
# Versions: torchmetrics 1.9.0, torch 2.13.0 (CPU).
# File: 512 positions with random logits of 1,000 tokens; one text token lies 26 nats under the likeliest, as a rare
#   word or a number in real text does.
# Came: infinity in float16: the softmax is made in the type of the logits, the token's probability underflows to 0,
#   and its logarithm is taken afterwards. The same logits by cross_entropy are finite. In bfloat16 nothing underflows,
#   but the sum of a batch is rounded to 8 bits: 3 % of the perplexity here.
# Matters: one unlikely token makes a whole evaluation in half precision infinite, and without one the third digit of
#   a table is the type's, not the model's.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 packaging==26.0 2>/dev/null
venv/bin/pip install -q --no-deps torchmetrics==1.9.0 lightning-utilities==0.15.2 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import math

import torch
from torch.nn.functional import cross_entropy
from torchmetrics.text import Perplexity

draw = torch.Generator().manual_seed(0)
logits = 3 * torch.randn(1, 512, 1000, generator=draw)
text = torch.randint(0, 1000, (1, 512), generator=draw)
logits[0, 7, text[0, 7]], logits[0, 7, (text[0, 7] + 1) % 1000] = -12, 14
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    given = logits.to(dtype)
    metric = Perplexity()
    metric.update(given, text)
    found, exact = float(metric.compute()), float(cross_entropy(given[0].double(), text[0]).exp())
    print(f"{dtype}: torchmetrics {found:.0f}, cross entropy of the same logits {exact:.0f}")
    off = found / exact - 1
    assert math.isinf(found) == (dtype == torch.float16), found
    assert dtype != torch.float32 or abs(off) < 1e-5
    assert dtype != torch.bfloat16 or abs(off) > 0.01, off
PY
# Output seen:
# torch.float32: torchmetrics 79170, cross entropy of the same logits 79169
# torch.bfloat16: torchmetrics 76880, cross entropy of the same logits 79203
# torch.float16: torchmetrics inf, cross entropy of the same logits 79171
