#!/usr/bin/env bash
# Guess: a checkpoint that transformers 4 saved with HQQ either loads in transformers 5, or is refused by name.
# Versions: written by transformers 4.57.6 with hqq 0.2.8.post1; read by transformers 5.23.0 with the same hqq; torch 2.13.0.
# File: a tiny random Llama in float32, HqqConfig(nbits=8, group_size=64), saved by save_pretrained.
# Came: from_pretrained returns a model, with a warning that lists weights as missing. They are initialised at random: two
#   loads of one folder give two different models, neither near the one that was saved (8 bits should be within 1 %).
#   Quantizing anew with the same HqqConfig raises NotImplementedError instead.
# Matters: whoever measures such a checkpoint measures noise, under its name.
# Helps: output_loading_info=True and a check that missing_keys is empty; transformers 4 reads it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
for name in old new; do
  python3 -m venv $name
  [ $name = old ] && version=4.57.6 || version=5.23.0
  $name/bin/pip install -q torch==2.13.0 transformers==$version accelerate==1.15.0 numpy==2.4.6 termcolor==3.3.0 2>/dev/null
  $name/bin/pip install -q --no-deps hqq==0.2.8.post1 2>/dev/null
done
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
old/bin/python - > log 2>&1 <<'PY' || { tail -20 log; exit 1; }
import torch
from transformers import AutoModelForCausalLM, HqqConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)).save_pretrained("plain")
model = AutoModelForCausalLM.from_pretrained(
    "plain", dtype=torch.float32, device_map="cpu", quantization_config=HqqConfig(nbits=8, group_size=64, axis=1)
).eval()
model.save_pretrained("saved")
plain = AutoModelForCausalLM.from_pretrained("plain", dtype=torch.float32).eval()
with torch.no_grad():
    ids = torch.arange(16)[None]
    torch.save([model(ids).logits, plain(ids).logits], "logits.pt")
PY
new/bin/python - 2> warnings <<'PY' || { tail -20 warnings; exit 1; }
import torch
from transformers import AutoModelForCausalLM, HqqConfig

saved, plain = torch.load("logits.pt")
ids, found = torch.arange(16)[None], []
for _ in range(2):
    with torch.no_grad():
        found.append(AutoModelForCausalLM.from_pretrained("saved", dtype=torch.float32).eval()(ids).logits)


def apart(one, other):
    return float((one - other).norm() / other.norm())


print(f"saved model from the plain one: {apart(saved, plain):.3f}")
print(f"loaded from the saved one: {apart(found[0], saved):.3f}, {apart(found[1], saved):.3f}")
print(f"two loads apart: {apart(found[0], found[1]):.3f}")
assert apart(saved, plain) < 0.05
assert min(apart(each, saved) for each in found) > 0.2
assert apart(found[0], found[1]) > 0.1
try:
    AutoModelForCausalLM.from_pretrained(
        "plain", device_map="cpu", quantization_config=HqqConfig(nbits=8, group_size=64, axis=1)
    )
except NotImplementedError:
    print("quantizing anew: NotImplementedError")
else:
    raise SystemExit("quantizing anew works")
PY
grep -qi missing warnings
