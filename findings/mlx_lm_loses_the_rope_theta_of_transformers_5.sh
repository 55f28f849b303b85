#!/usr/bin/env bash
# Guess: mlx-lm loads a checkpoint that transformers 5 saved as it loads one of transformers 4: the same model, or an
#   error that names what it cannot read.
# Versions: mlx-lm 0.32.2, mlx 0.32.4 on its CPU backend (mlx-cpu 0.32.4), transformers 5.23.0, torch 2.13.0 (CPU).
# File: tiny random models in float32 with the rope_theta of Llama 3 (500,000), saved by save_pretrained; 48 random tokens.
# Came: transformers 5 writes rope_theta inside rope_parameters and no longer beside it. mlx-lm finds it there for qwen3
#   alone; for llama, mistral, qwen2, phi3 and gemma it takes the architecture's default (10,000 or 1,000,000) without a
#   word, and drops Llama 3's scaling of frequencies too. Log-probabilities differ by 0.3 to 1.1 nats; with rope_theta (and
#   rope_scaling) put beside rope_parameters by hand they are equal.
# Known: ml-explore/mlx-lm#953 set out to read rope_parameters everywhere, and was closed.
# Matters: a model that was trained, merged or quantized with transformers 5 and measured in MLX is another model there;
#   short texts look well, and the loss grows with the position. Who compares quantizers by MLX compares this with them.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6 'mlx[cpu]==0.32.4' mlx-cpu==0.32.4 2>/dev/null
venv/bin/pip install -q sentencepiece==0.2.2 protobuf==7.36.2 2>/dev/null
venv/bin/pip install -q --no-deps mlx-lm==0.32.2 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>warnings <<'PY' || { tail -5 warnings; exit 1; }
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import AutoConfig, AutoModelForCausalLM

mx.set_default_device(mx.cpu)
torch.set_grad_enabled(False)
THETA = 500000.0
tokens = torch.randint(2, 64, (1, 48), generator=torch.Generator().manual_seed(0))
llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}


def in_mlx(folder):
    model = load_model(folder)[0]
    logits = np.array(model(mx.array(tokens.numpy())).astype(mx.float32))[0]
    return torch.log_softmax(torch.from_numpy(logits), -1), model.args.rope_theta


def off(kind, rope):
    torch.manual_seed(0)
    own = {"head_dim": 16} if kind in ("qwen3", "gemma") else {}
    config = type(AutoConfig.for_model(kind))(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.1, bos_token_id=1, eos_token_id=1,
        pad_token_id=0, rope_parameters={"rope_theta": THETA} | rope, **own)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    folder = Path(f"{kind}-{rope['rope_type']}")
    model.save_pretrained(folder)
    written = torch.log_softmax(model(tokens).logits[0], -1)
    found, theta = in_mlx(folder)
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    assert "rope_theta" not in whole and whole["rope_parameters"]["rope_theta"] == THETA
    scaling = rope if rope["rope_type"] != "default" else None
    file.write_text(json.dumps(whole | {"rope_theta": THETA, "rope_scaling": scaling}))
    mended, _ = in_mlx(folder)
    return theta, float((found - written).abs().max()), float((mended - written).abs().max())


plain = {"rope_type": "default"}
for kind, rope in [*((kind, plain) for kind in ("llama", "mistral", "qwen2", "phi3", "gemma", "qwen3")), ("llama", llama3)]:
    theta, lost, mended = off(kind, rope)
    print(f"{kind}, {rope['rope_type']}: mlx-lm takes {theta:.0f}, off by {lost:.4f} nats; with rope_theta beside "
          f"rope_parameters by {mended:.4f}", flush=True)
    assert mended < 1e-3, (kind, mended)
    assert (theta == THETA and lost < 1e-3) if kind == "qwen3" else (theta != THETA and lost > 0.05), (kind, theta, lost)
PY
# Output seen:
# llama, default: mlx-lm takes 10000, off by 1.0641 nats; with rope_theta beside rope_parameters by 0.0000
# mistral, default: mlx-lm takes 10000, off by 1.0641 nats; with rope_theta beside rope_parameters by 0.0000
# qwen2, default: mlx-lm takes 1000000, off by 0.5913 nats; with rope_theta beside rope_parameters by 0.0000
# phi3, default: mlx-lm takes 10000, off by 0.8888 nats; with rope_theta beside rope_parameters by 0.0000
# gemma, default: mlx-lm takes 10000, off by 0.3263 nats; with rope_theta beside rope_parameters by 0.0005
# qwen3, default: mlx-lm takes 500000, off by 0.0000 nats; with rope_theta beside rope_parameters by 0.0000
# llama, llama3: mlx-lm takes 10000, off by 0.9698 nats; with rope_theta beside rope_parameters by 0.0000
