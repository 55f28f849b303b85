"""GPTQ of llm-compressor on a folder and given windows: run by the peers' interpreter.

  DIR/bin/python benchmarks/peers/llm_compressor.py FOLDER WINDOWS.json BITS GROUP

Prints one JSON line: seconds of the whole run by the clock and of the processor, and bytes of the
peak resident set above the loaded model, every weight of which has been read before: loading only
maps them. Imports nothing of this project.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, windows, bits, group = sys.argv[1:5]
    ids = json.loads(Path(windows).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    grid = QuantizationArgs(
        num_bits=int(bits), group_size=int(group), strategy="group", symmetric=False
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=grid)
    recipe = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    rows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in ids]
    torch.mm(torch.randn(2048, 2048), torch.randn(2048, 2048))  # its buffers stay
    for parameter in model.parameters():
        parameter.detach().sum()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = _status("VmRSS")
    clock, processor = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
    )
    found = {
        "version": version("llmcompressor"),
        "seconds": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "peak": _status("VmHWM") - before,
    }
    print(json.dumps(found), flush=True)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
