#!/usr/bin/env bash
# Guess: llama.cpp reads rope.scaling.yarn_beta_fast and yarn_beta_slow of a qwen3 file, as it reads the type, the factor
#   and the original context beside them.
# Versions: xllamacpp 2026.10.11549 (llama.cpp), gguf 0.19.0, transformers 5.23.0 and torch 2.13.0 (CPU) for the model that is
#   written: two random blocks.
# Came: it takes 32 and 1 whatever they say, without a warning. With 4 and 0.5 in the file its log-probabilities are those
#   of the model with 32 and 1 to 1e-4, and up to 3.6 nats from the one that was written; told both by hand
#   (yarn_beta_fast, yarn_beta_slow of its parameters) it gives the written model's.
# Known: its converter writes both keys for every architecture whose configuration has them; readers of single
#   architectures (Grok's) take them, the common one does not.
# Matters: YaRN with other betas is another model in llama.cpp, for short texts too, as the frequencies are fixed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.4.6 xllamacpp==2026.10.11549 2>/dev/null
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'PY' || { tail -20 log; exit 1; }
import json, pathlib, urllib.request
import gguf, torch, xllamacpp
from transformers import Qwen3Config, Qwen3ForCausalLM

vocabulary, blocks = 64, 2
usual, other = (32.0, 1.0), (4.0, 0.5)

def with_betas(fast, slow):
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=64, num_hidden_layers=blocks, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        intermediate_size=64, max_position_embeddings=128, tie_word_embeddings=False, use_sliding_window=False,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
                         "beta_fast": fast, "beta_slow": slow},
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return model

def write(path, model):
    config = model.config
    rope = config.rope_parameters
    file = gguf.GGUFWriter(path, "qwen3")
    file.add_name("tiny")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(blocks)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_key_length(config.head_dim)
    file.add_value_length(config.head_dim)
    file.add_file_type(gguf.LlamaFileType.ALL_F32)
    file.add_rope_freq_base(rope["rope_theta"])
    file.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    file.add_rope_scaling_factor(rope["factor"])
    file.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    file.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    file.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("qwen2")
    file.add_token_list([f"t{n}" for n in range(vocabulary)])
    file.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    file.add_token_merges(["t 1"])
    file.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, blocks)
    for name, weight in model.named_parameters():
        file.add_tensor(names.get_name(name, (".weight",)), weight.detach().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()

ids = torch.randint(4, vocabulary, (1, 96), generator=torch.Generator().manual_seed(2))

def of_llama_cpp(path, betas=None):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(pathlib.Path(path).resolve())
    parameters.n_ctx, parameters.n_parallel = 128, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if betas:
        parameters.yarn_beta_fast, parameters.yarn_beta_slow = betas
    server = xllamacpp.Server(parameters)
    body = json.dumps({"prompt": ids[0].tolist(), "n_predict": 1, "n_probs": vocabulary}).encode()
    request = urllib.request.Request(f"{server.listening_address}/completion", body, {"Content-Type": "application/json"})
    (token,) = json.load(urllib.request.urlopen(request))["completion_probabilities"]
    found = torch.zeros(vocabulary)
    for each in token["top_logprobs"]:
        found[each["id"]] = each["logprob"]
    return found

def apart(one, two):
    return (one - two).abs().max().item()

true = {}
for betas in (usual, other):
    model = with_betas(*betas)
    with torch.no_grad():
        true[betas] = model(ids).logits[0, -1].log_softmax(-1)
    write(f"{betas[0]}.gguf", model)

apart_from = {}
for label, betas, by_hand in (("as it is", usual, None), ("as it is", other, None), ("betas by hand", other, other)):
    found = of_llama_cpp(f"{betas[0]}.gguf", by_hand)
    apart_from[betas, by_hand] = near = [apart(found, true[each]) for each in (usual, other)]
    print(f"file with {betas}, {label}: {near[0]:.4f} from the model with {usual}, {near[1]:.4f} from that with {other}")
assert apart_from[usual, None][0] < 0.01 and apart(true[usual], true[other]) > 0.5
assert apart_from[other, None][0] < 0.01 and apart_from[other, None][1] > 0.5
assert apart_from[other, other][1] < 0.01
PY
if grep -i "yarn_beta" log; then exit 1; fi
# Output seen:
# file with (32.0, 1.0), as it is: 0.0000 from the model with (32.0, 1.0), 3.5522 from that with (4.0, 0.5)
# file with (4.0, 0.5), as it is: 0.0000 from the model with (32.0, 1.0), 3.5522 from that with (4.0, 0.5)
# file with (4.0, 0.5), betas by hand: 3.5522 from the model with (32.0, 1.0), 0.0000 from that with (4.0, 0.5)
