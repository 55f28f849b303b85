#!/usr/bin/env bash
# Guess: get_memory_footprint() of a model that transformers loaded in 4 or 8 bits is the bytes of its weights, codes and scales, as the
#   saved file has them; its text says "the memory footprint of a model", "useful to benchmark" it.
# Versions: transformers 5.24.0, accelerate 1.15.0, bitsandbytes 0.50.2, optimum-quanto 0.2.7, torchao 0.18.0, torch 2.13.0 (CPU).
# File: a tiny random Llama in bfloat16, quantized while it is loaded; embedding, head and norms (bfloat16 everywhere) are taken off, and the
#   rest is divided by the weights of the linear layers. What is held is counted here, tensor by tensor.
# Came: one call, two errors, and neither is said. bitsandbytes: 4.000 bits a weight, whatever the blocks; its scales are in no parameter and
#   no buffer. Held and saved are 4.5 bits with blocks of 64, and 4.15 with double quantization, which the footprint calls equal.
#   quanto (8, 4 and 2 bits) and torchao: 16 bits, as if nothing had been quantized: the tensor names the type that it stands for.
# Known: nothing was found on the function; it sums numel() times element_size().
# Matters: a table of "bits a weight" or "model size" by this call has NF4 a ninth too small and double quantization without any gain; beside
#   them quanto's 2 bits and torchao's 8 stand at full size. num_parameters(), by contrast, is right for all of them.
# Helps: the size of the saved file, or __tensor_flatten__ of the weights and bitsandbytes' quant_state.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 2>/dev/null
venv/bin/pip install -q transformers==5.24.0 psutil==7.2.2 ninja packaging scipy==1.17.1 2>/dev/null
venv/bin/pip install -q --no-deps accelerate==1.15.0 bitsandbytes==0.50.2 optimum-quanto==0.2.7 torchao==0.18.0 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, QuantoConfig, TorchAoConfig

torch.manual_seed(0)
config = LlamaConfig(vocab_size=256, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
                     num_key_value_heads=8)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained("model")
linear = sum(part.numel() for name, part in model.named_parameters() if "proj" in name)
other = 2 * (model.num_parameters() - linear)
assert model.get_memory_footprint() - other - 2 * linear < 2048, "the model itself is counted right"


def held(tensor):
    """Bytes of a tensor and of all that its class wraps."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(held(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    size = tensor.numel() * tensor.element_size()
    states = [getattr(tensor, "quant_state", None)]
    while states and states[-1] is not None:
        state = states.pop()
        size += held(state.absmax) + held(state.code)
        states.append(getattr(state, "state2", None))
    return size


def nf4(double):
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)


forms = {"bitsandbytes NF4": nf4(False), "bitsandbytes NF4 double": nf4(True)}
forms |= {f"quanto {kind}": QuantoConfig(weights=kind) for kind in ("int8", "int4", "int2")}
forms["torchao int8"] = TorchAoConfig(Int8WeightOnlyConfig())
seen = {}
for name, form in forms.items():
    found = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16, quantization_config=form, device_map="cpu")
    footprint = 8 * (found.get_memory_footprint() - other) / linear
    true = 8 * sum(held(part.weight) for key, part in found.named_modules() if "proj" in key and hasattr(part, "weight")) / linear
    seen[name] = footprint, true
    print(f"{name}: footprint {footprint:.3f} bits a weight, held {true:.3f}", flush=True)
    assert found.num_parameters() == model.num_parameters()
assert seen["bitsandbytes NF4"][0] == seen["bitsandbytes NF4 double"][0] < 4.01, seen
assert 4.4 < seen["bitsandbytes NF4"][1] < 4.6 and 4.1 < seen["bitsandbytes NF4 double"][1] < 4.2, seen
assert all(seen[name][0] > 15.9 for name in seen if "bitsandbytes" not in name), seen
assert seen["quanto int2"][1] < 3 and seen["quanto int4"][1] < 5 and seen["torchao int8"][1] < 8.5, seen
PY
# Output seen:
# bitsandbytes NF4: footprint 4.000 bits a weight, held 4.501
# bitsandbytes NF4 double: footprint 4.000 bits a weight, held 4.150
# quanto int8: footprint 16.001 bits a weight, held 8.028
# quanto int4: footprint 16.001 bits a weight, held 4.250
# quanto int2: footprint 16.001 bits a weight, held 2.250
# torchao int8: footprint 16.000 bits a weight, held 8.070
