#!/usr/bin/env bash
# Guess: train() and eval() do not change what bitsandbytes' Linear8bitLt gives on a processor under no_grad: it is a linear layer,
#   with nothing random, and quantizes its inputs to 8 bits by row, outliers above the threshold kept (LLM.int8).
# Versions: bitsandbytes 0.50.2, torch 2.13.0 (CPU).
# File: a layer of 512 inputs with normal weights; normal inputs with one channel 60 times as large; has_fp16_weights=False.
# Came: in training mode, in which a module is made, only the weights are quantized and the threshold has no effect; in eval mode
#   inputs are quantized too. Without a threshold the error is 0.7 % in the one and 5 % in the other (with 6, 0.7 and 0.8);
#   the references of each (float64) are met to 0.3 %.
# Known: a comment in the source gives speed as the reason for the other way in training; nothing was found on the result.
# Matters: a layer or model that was put together by hand and not set to eval() is measured as weight-only, which looks seven
#   times better than what is then served; calibration in training mode and measurement in eval mode are of two layers.
# Helps: eval(), which from_pretrained calls.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 packaging==26.0 2>/dev/null
venv/bin/pip install -q --no-deps bitsandbytes==0.50.2 2>/dev/null
cat > run.py <<'PY'
import bitsandbytes, torch

torch.set_grad_enabled(False)
torch.manual_seed(0)
weight, inputs = torch.randn(256, 512) * 0.02, torch.randn(64, 512)
inputs[:, 7] *= 60
true = inputs.double() @ weight.double().T

def rounded(numbers):
    scale = numbers.abs().amax(1, keepdim=True) / 127
    return (numbers / scale).round() * scale

def off(found, other):
    return float((found.double() - other).norm() / other.norm())

rows = rounded(weight.double())
kept = inputs.abs().amax(0) >= 6
small = torch.where(kept, 0, inputs.double())
references = {
    (True, 0.0): inputs.double() @ rows.T, (True, 6.0): inputs.double() @ rows.T,
    (False, 0.0): rounded(inputs.double()) @ rows.T,
    (False, 6.0): rounded(small) @ rows.T + inputs[:, kept].double() @ rows[:, kept].T,
}
found = {}
for training, threshold in references:
    layer = bitsandbytes.nn.Linear8bitLt(512, 256, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").train(training)
    got = layer(inputs)
    found[training, threshold] = off(got, true)
    print(f"{'training' if training else 'eval'} mode, threshold {threshold}: error {found[training, threshold]:.4f}, "
          f"from its reference {off(got, references[training, threshold]):.4f}")
    assert off(got, references[training, threshold]) < 0.005, (training, threshold)
assert found[True, 0.0] < 0.01 and found[False, 0.0] > 5 * found[True, 0.0], found
PY
OMP_NUM_THREADS=1 venv/bin/python run.py 2>log || { tail -5 log; exit 1; }
# Output seen:
# training mode, threshold 0.0: error 0.0074, from its reference 0.0016
# training mode, threshold 6.0: error 0.0074, from its reference 0.0016
# eval mode, threshold 0.0: error 0.0499, from its reference 0.0033
# eval mode, threshold 6.0: error 0.0078, from its reference 0.0020
