"""Log-probabilities and token ids of llama.cpp, by the peers' interpreter.

  DIR/bin/python benchmarks/peers/llama_cpp_scores.py FILE.gguf THREADS

For every JSON line {"ids": [...], "vocabulary": N, "texts": [...]} it prints one with the natural
logarithm of every id's probability after those before it (not of the first), and the ids of the
texts. Keys and values are float32; each token is scored by forcing it and asking what its
probability was before that. The server divides by a plain float32 sum over the vocabulary, so its
probabilities sum to more than 1 (by 1e-4 for 49,152 tokens); N, the size of the vocabulary, has all
of them asked for and divided by their sum. Imports nothing of this project.
"""

import json
import math
import sys
import urllib.request
from typing import Any

import xllamacpp

CONTEXT = 1024
FORCED = 1e6  # added to a logit


def load(path: str, threads: int) -> xllamacpp.Server:
    """A server in this process with one place for a conversation."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx, parameters.n_parallel = CONTEXT, 1
    parameters.n_batch = parameters.n_ubatch = CONTEXT
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # On processors it rounds to float16, whatever the cache has: a thousandth of a logarithm.
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.warmup = False
    return xllamacpp.Server(parameters)


def scores(server: xllamacpp.Server, ids: list[int], vocabulary: int) -> list[float]:
    """The log-probability of every id but the first; 0: as the server has it."""
    found = []
    for index in range(1, len(ids)):
        answer = server.handle_completions(
            {
                "prompt": ids[:index],
                "n_predict": 1,
                "n_probs": vocabulary or 1,
                "temperature": 1.0,
                "samplers": ["temperature"],
                "logit_bias": [[ids[index], FORCED]],
                "cache_prompt": True,
            }
        )
        said: Any = answer if isinstance(answer, dict) else json.loads(answer)
        (token,) = said["choices"][0]["logprobs"]["content"]
        if token["id"] != ids[index]:
            sys.exit(f"llama.cpp gave {token['id']} where {ids[index]} was forced")
        total = math.fsum(math.exp(each["logprob"]) for each in token["top_logprobs"])
        found.append(token["logprob"] - (math.log(total) if vocabulary else 0))
    return found


def tokens(server: xllamacpp.Server, text: str) -> list[int]:
    """Ids of a text with what stands before every text."""
    content = json.dumps({"content": text, "add_special": True, "parse_special": True})
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        content.encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        found: list[int] = json.load(answer)["tokens"]
    return found


def main() -> None:
    server = load(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"version": xllamacpp.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = {
            "scores": scores(server, asked.get("ids", []), asked.get("vocabulary", 0)),
            "tokens": [tokens(server, each) for each in asked.get("texts", ())],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
