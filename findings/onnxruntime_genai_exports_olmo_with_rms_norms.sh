#!/usr/bin/env bash
# Guess: onnxruntime-genai's model builder lists OLMo among its architectures, so an OLMo in float32 has the log-probabilities of
#   transformers to 1e-4 when exported, as Llama, Qwen 3, Granite and Phi-3 have.
# Versions: onnxruntime-genai 0.18.0, onnxruntime 1.32.0, onnx 1.23.2, transformers 5.24.0, torch 2.13.0 (CPU).
# File: tiny random models in float32, built with -p fp32 -e cpu; 200 random tokens in one pass.
# Came: Llama is equal to 1e-5. OLMo's layer norms (mean taken off, no weights, epsilon 1e-5) are exported as RMS norms (the mean stays,
#   epsilon 1e-6): every token is off, the first by 0.2 nats, others by up to 2.4. With RMS norms put into transformers' model the two
#   are equal to 1e-5. clip_qkv, where a configuration has it, is dropped as well (then 4 nats). Nothing is said by the builder.
# Known: nothing was found. The builder gives OLMo's norms weights of ones and biases of zeros, and leaves their kind at the default.
# Matters: a perplexity of OLMo-1B or 7B by this export, in int4 or not, is another network's, and looks like the price of quantization.
#   Where the mean of the activations is small beside their spread the loss is small too, and is not noticed at all.
# Helps: to look for LayerNormalization in the exported graph, and to compare one float32 export with transformers first.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 2>/dev/null
venv/bin/pip install -q transformers==5.24.0 onnx==1.23.2 onnxruntime==1.32.0 onnxruntime-genai==0.18.0 onnx-ir==1.1.0 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import subprocess
import sys

import numpy as np
import onnxruntime
import torch
import transformers
from tokenizers import Tokenizer, models

torch.manual_seed(0)
SIZES = dict(vocab_size=321, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             tie_word_embeddings=False)
ids = torch.randint(3, 321, (1, 200))


def random_model(kind, **options):
    model = getattr(transformers, kind + "ForCausalLM")(getattr(transformers, kind + "Config")(**SIZES, **options)).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.normal_(1 if part.ndim == 1 else 0, 0.1)
    return model


def of_torch(model):
    with torch.no_grad():
        return model(ids).logits[0].log_softmax(-1)


def of_onnx(model, folder):
    """Log-probabilities [200, 321] of the exported model, and what the builder printed."""
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{j}": j for j in range(321)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2").save_pretrained(folder)
    made = subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", folder + "/onnx",
                           "-p", "fp32", "-e", "cpu", "-c", "cache"], capture_output=True, text=True, check=True)
    session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx")
    feed = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 200), np.int64)}
    feed |= {part.name: np.zeros((1, 2, 0, 16), np.float32) for part in session.get_inputs() if "past" in part.name}
    logits = torch.from_numpy(session.run(["logits"], feed)[0][0])
    return logits.log_softmax(-1), made.stdout + made.stderr


def nats(found):
    return float(-found[:-1].gather(1, ids[0, 1:, None]).mean())


class Rms(torch.nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


seen = {}
for name, kind, options in (("Llama", "Llama", {}), ("OLMo", "Olmo", {}), ("OLMo, clip_qkv", "Olmo", {"clip_qkv": 0.5})):
    model = random_model(kind, **options)
    exact = of_torch(model)
    found, said = of_onnx(model, name)
    assert "warn" not in said.lower() or "norm" not in said.lower(), said
    for part in [part for part in model.modules() if kind == "Olmo" and hasattr(part, "input_layernorm")] + [model.model]:
        for key in ("input_layernorm", "post_attention_layernorm", "norm"):
            if kind == "Olmo" and hasattr(part, key):
                setattr(part, key, Rms())
    model.config.clip_qkv = None
    seen[name] = [float((found - other).abs().max()) for other in (exact, of_torch(model))] + [float((found - exact)[0].abs().max())]
    print(f"{name}: exported against transformers {seen[name][0]:.5f} nats at most, {seen[name][2]:.5f} at the first token", end="")
    print("" if kind == "Llama" else f"; with RMS norms and no clipping {seen[name][1]:.5f}", end="")
    print(f"; mean nats a token {nats(exact):.4f} and {nats(found):.4f}", flush=True)
assert seen["Llama"][0] < 1e-4, seen
for name in ("OLMo", "OLMo, clip_qkv"):
    assert seen[name][0] > 1 and seen[name][2] > 0.1 and seen[name][1] < 1e-4, seen
PY
# Output seen:
# Llama: exported against transformers 0.00000 nats at most, 0.00000 at the first token; mean nats a token 6.1072 and 6.1072
# OLMo: exported against transformers 2.41198 nats at most, 0.18499 at the first token; with RMS norms and no clipping 0.00000; mean nats a token 6.1041 and 6.0561
# OLMo, clip_qkv: exported against transformers 4.03148 nats at most, 1.67190 at the first token; with RMS norms and no clipping 0.00000; mean nats a token 6.1558 and 6.1775
