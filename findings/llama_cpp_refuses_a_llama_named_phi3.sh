#!/usr/bin/env bash
# Guess: general.name of a GGUF file is a label; a Llama whose name has "phi3" in it loads as under any other name.
# Versions: xllamacpp 2026.10.11549 (llama.cpp), gguf 0.19.0, numpy 2.4.6: one random block, a byte-pair vocabulary.
# Came: it does not load: "error loading model vocabulary: _Map_base::at". The same bytes under "phi" or "tiny" load.
#   Letters may be large or small, with a hyphen or none, anywhere in the name, whatever the architecture.
# Known: the vocabulary's loader looks for the name of a few models and then gives their special tokens other flags
#   (white space behind them is dropped); where such a token is not in the vocabulary, the look-up ends the loading.
# Matters: a converter's or user's choice of a name makes a good file useless, and the message names neither key nor
#   token; where the tokens are there, the name decides how text is cut.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q gguf==0.19.0 numpy==2.4.6 xllamacpp==2026.10.11549 2>/dev/null
cat > load.py <<'PY'
import pathlib, sys
import gguf, numpy, xllamacpp

vocabulary, width = 64, 32

def write(path, name):
    file = gguf.GGUFWriter(path, "llama")
    file.add_name(name)
    file.add_context_length(64)
    file.add_embedding_length(width)
    file.add_block_count(1)
    file.add_feed_forward_length(width)
    file.add_head_count(1)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_file_type(gguf.LlamaFileType.ALL_F32)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list([f"t{n}" for n in range(vocabulary)])
    file.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    file.add_token_merges(["t 1"])
    file.add_eos_token_id(1)
    draw = numpy.random.default_rng(0)
    shapes = {"token_embd": (vocabulary, width), "output": (vocabulary, width), "output_norm": (width,),
              "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    shapes |= {f"blk.0.{each}": (width, width) for each in
               ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    for tensor, shape in shapes.items():
        file.add_tensor(f"{tensor}.weight", draw.normal(0, 0.2, shape).astype(numpy.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()

def loads(name):
    path = pathlib.Path("tiny.gguf").resolve()
    write(path, name)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 64, 1, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    try:
        xllamacpp.Server(parameters)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loads"

print(f"{sys.argv[1]!r}: {loads(sys.argv[1])}")
PY
for name in tiny phi phi3 Phi-3 "a llama beside phi3"; do
  venv/bin/python load.py "$name" 2>>log | tee -a seen
done
test "$(grep -c ": loads$" seen)" = 2
test "$(grep -c ": RuntimeError: Failed to init server" seen)" = 3
grep -q "error loading model vocabulary: _Map_base::at" log
# Output seen:
# 'tiny': loads
# 'phi': loads
# 'phi3': RuntimeError: Failed to init server, please check the input params.
# 'Phi-3': RuntimeError: Failed to init server, please check the input params.
# 'a llama beside phi3': RuntimeError: Failed to init server, please check the input params.
