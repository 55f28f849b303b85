#!/usr/bin/env bash
# Guess: onnxruntime-genai's model builder exports a Llama with the rope type linear or yarn as it is, since its base class knows both and
#   refuses types that it does not know; or it refuses the model.
# Versions: onnxruntime-genai 0.18.0, onnxruntime 1.32.0, onnx 1.23.2, transformers 5.24.0, torch 2.13.0 (CPU).
# File: tiny random Llamas in float32, factor 4, built with -p fp32 -e cpu; 200 random tokens in one pass.
# Came: default and llama3 are equal to 1e-5. linear and yarn are exported without a word as the type default: log-probabilities are
#   those of the unscaled model, to 1e-5, and up to 2.8 nats from the model that was exported, 1.3 within 16 tokens. The class for
#   Llama has a method of its own for this setting, which knows llama3 alone and passes over the rest. A Mistral with linear is right.
# Known: microsoft/onnxruntime-genai#2142 (linear) and #2076 (yarn) mended the base class, from which a Mistral takes it; nothing was
#   found for the class of Llama.
# Matters: DeepSeek-Coder (linear, 4) and other Llamas made long are exported with the wrong positions, which matters at the first sentence;
#   the perplexity of an int4 export then seems to be the price of int4.
# Helps: to compare one float32 export with transformers first.
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


FORMS = {
    "default": {},
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    "linear": dict(factor=4.0),
    "yarn": dict(factor=4.0, original_max_position_embeddings=1024),
}
seen = {}
for kind, form in (*(("Llama", form) for form in FORMS), ("Mistral", "linear")):
    options = {"sliding_window": None} if kind == "Mistral" else {}
    model = random_model(kind, rope_parameters=dict(rope_type=form, rope_theta=10000.0, **FORMS[form]), **options)
    exact = of_torch(model)
    found, said = of_onnx(model, f"{kind}-{form}")
    assert "rope" not in said.lower(), said
    plain = type(model)(type(model.config)(**SIZES, **options)).eval()
    plain.load_state_dict(model.state_dict())
    off = (found - exact).abs().amax(-1)
    seen[kind, form] = float(off[:16].max()), float(off.max()), float((found - of_torch(plain)).abs().max())
    print(f"{kind}, {form}: off by {seen[kind, form][0]:.5f} within 16 tokens and {seen[kind, form][1]:.5f} within 200, "
          f"{seen[kind, form][2]:.5f} from the type default; mean nats a token {nats(exact):.4f} and {nats(found):.4f}", flush=True)
for key in (("Llama", "default"), ("Llama", "llama3"), ("Mistral", "linear")):
    assert seen[key][1] < 1e-4, seen
for key in (("Llama", "linear"), ("Llama", "yarn")):
    assert seen[key][0] > 0.1 and seen[key][1] > 1 and seen[key][2] < 1e-4, seen
PY
# Output seen:
# Llama, default: off by 0.00000 within 16 tokens and 0.00000 within 200, 0.00000 from the type default; mean nats a token 6.1072 and 6.1072
# Llama, llama3: off by 0.00000 within 16 tokens and 0.00000 within 200, 2.77725 from the type default; mean nats a token 6.1121 and 6.1121
# Llama, linear: off by 1.30251 within 16 tokens and 2.39255 within 200, 0.00000 from the type default; mean nats a token 6.1993 and 6.2254
# Llama, yarn: off by 0.96722 within 16 tokens and 2.83418 within 200, 0.00000 from the type default; mean nats a token 6.1891 and 6.1854
# Mistral, linear: off by 0.00000 within 16 tokens and 0.00000 within 200, 2.77427 from the type default; mean nats a token 6.1647 and 6.1647
