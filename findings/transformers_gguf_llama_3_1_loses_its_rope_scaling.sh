#!/usr/bin/env bash
# Guess: from_pretrained(folder, gguf_file=...) of a Llama 3.1 file (3.2 and 3.3 alike) has that model's scaling of rotary
#   frequencies, or says that it has not.
# Versions: transformers 5.24.0, gguf 0.19.0, torch 2.13.0 (CPU), xllamacpp 2026.10.11549 (llama.cpp).
# File: a tiny random Llama with Llama 3.1's rope_parameters (llama3, factor 8, 8192 positions, theta 500000) in float32. No key of
#   the file holds them, in real files neither: llama.cpp's converter writes the factors of the frequencies as the tensor
#   rope_freqs.weight, which is written so here.
# Came: the tensor is passed over, the configuration says rope_type "default", and no warning is given. Weights come out right;
#   log-probabilities are off by 0.2 nats within 32 tokens and by up to 8.2 within 900; with the model's configuration given
#   they are equal. llama.cpp on the same file gives those of the written model at the last place.
# Known: nothing was found for transformers; unsloth had the same loss on a way of its own (unslothai/unsloth#6197).
# Matters: a Llama 3.1 file dequantized in transformers is the model with Llama 3.0's positions: short prompts look well, and
#   perplexity at 2,048 or more, where quantizers are compared, is another model's than llama.cpp's. Random weights show it
#   more strongly than trained ones. save_pretrained then writes the wrong configuration for good.
# Helps: from_pretrained(..., config=...) with the original model's configuration.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.24.0 gguf==0.19.0 numpy==2.4.6 accelerate==1.15.0 xllamacpp==2026.10.11549 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'PY' || { tail -20 log; exit 1; }
import json, math, pathlib, urllib.request
import gguf, numpy as np, torch, xllamacpp
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

vocabulary, blocks, width, theta = 64, 2, 128, 500000.0
scaling = {"rope_type": "llama3", "rope_theta": theta, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}
config = LlamaConfig(
    vocab_size=vocabulary, hidden_size=width, intermediate_size=width, num_hidden_layers=blocks, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_parameters=scaling,
)
torch.manual_seed(0)
model = LlamaForCausalLM(config).eval()
for name, weight in model.named_parameters():
    torch.nn.init.normal_(weight, 1 if "norm" in name else 0, 0.1 if "norm" in name else 0.2)

def factor(frequency):
    """Equations of Llama 3.1: what a frequency is divided by."""
    turns = 8192 * frequency / (2 * math.pi)
    smooth = min(max((turns - 1) / (4 - 1), 0), 1)
    return 1 / ((1 - smooth) / 8 + smooth)

def rows_of_llama_cpp(weight):
    """Its rows of queries and keys stand in pairs, not in halves."""
    return weight.reshape(2, 2, 32, width).transpose(0, 2, 1, 3).reshape(width, width)

file = gguf.GGUFWriter("tiny.gguf", "llama")
file.add_name("tiny")
file.add_context_length(131072)
file.add_embedding_length(width)
file.add_block_count(blocks)
file.add_feed_forward_length(width)
file.add_head_count(2)
file.add_head_count_kv(2)
file.add_layer_norm_rms_eps(1e-5)
file.add_rope_freq_base(theta)
file.add_rope_dimension_count(64)
file.add_file_type(gguf.LlamaFileType.ALL_F32)
file.add_tokenizer_model("llama")
file.add_tokenizer_pre("default")
file.add_token_list(["<unk>", "<s>", "</s>"] + [f"t{n}" for n in range(3, vocabulary)])
file.add_token_scores([-float(n) for n in range(vocabulary)])
file.add_token_types([gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (vocabulary - 3))
file.add_unk_token_id(0)
file.add_bos_token_id(1)
file.add_eos_token_id(2)
factors = [factor(theta ** (-n / 32)) for n in range(32)]
file.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
for name, weight in model.named_parameters():
    array = weight.detach().numpy()
    paired = rows_of_llama_cpp(array) if "q_proj" in name or "k_proj" in name else array
    file.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(paired))
file.write_header_to_file()
file.write_kv_data_to_file()
file.write_tensors_to_file()
file.close()

read = AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf").eval()
mended = AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", config=config).eval()
weights = dict(read.named_parameters())
farthest = max((weight - weights[name]).abs().max().item() for name, weight in model.named_parameters())
ids = torch.randint(3, vocabulary, (1, 900))
with torch.no_grad():
    true, theirs, right = (each(ids).logits[0].log_softmax(-1) for each in (model, read, mended))

parameters = xllamacpp.CommonParams()
parameters.model.path = str(pathlib.Path("tiny.gguf").resolve())
parameters.n_ctx, parameters.n_parallel = 1024, 1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(parameters)
body = json.dumps({"prompt": ids[0].tolist(), "n_predict": 1, "n_probs": vocabulary}).encode()
request = urllib.request.Request(f"{server.listening_address}/completion", body, {"Content-Type": "application/json"})
(token,) = json.load(urllib.request.urlopen(request))["completion_probabilities"]
of_llama_cpp = torch.zeros(vocabulary)
for each in token["top_logprobs"]:
    of_llama_cpp[each["id"]] = each["logprob"]

def apart(one, other):
    return (one - other).abs().max().item()

print(f"rope_parameters read: {read.config.rope_parameters}; factors in the file {min(factors):g} to {max(factors):g}; weights differ by {farthest:.0e}")
print(f"log-probabilities against the model's: {apart(true[:32], theirs[:32]):.2f} within 32 tokens, {apart(true, theirs):.2f} within 900; "
      f"with its configuration {apart(true, right):.0e}")
print(f"the last place: llama.cpp {apart(true[-1], of_llama_cpp):.3f}, read {apart(true[-1], theirs[-1]):.3f}")
assert read.config.rope_parameters["rope_type"] == "default" and farthest < 1e-6
assert apart(true, theirs) > 1 and apart(true, right) < 1e-3
assert apart(true[-1], of_llama_cpp) < 0.02 < 0.2 < apart(true[-1], theirs[-1])
PY
if grep -iE "rope" log; then exit 1; fi
# Output seen:
# rope_parameters read: {'rope_theta': 500000.0, 'rope_type': 'default'}; factors in the file 1 to 8; weights differ by 0e+00
# log-probabilities against the model's: 0.19 within 32 tokens, 8.20 within 900; with its configuration 0e+00
# the last place: llama.cpp 0.000, read 1.921
