"""Our reading of checkpoints of bitsandbytes beside its own: every weight bit by bit, and logits.

LLM.int8 also rounds activations to 8 bits, which we do not, so its logits differ.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.peers import environment
from harness.embedded import MODEL_DIR

TOKENS = torch.arange(3, 67)[None]


def bitsandbytes() -> None:
    """NF4, FP4 and LLM.int8 checkpoints, read by us and by bitsandbytes: weights and logits."""
    interpreter = environment.interpreter("bitsandbytes")
    if interpreter is None:
        return
    with tempfile.TemporaryDirectory() as room:
        tokens, ragged = Path(room) / "tokens.json", Path(room) / "ragged"
        tokens.write_text(json.dumps(TOKENS.tolist()))
        _make_ragged(ragged)
        for what, base in (("the embedded model", MODEL_DIR), ("rows of 40 and 72", ragged)):
            out = Path(room) / base.name / "saved"
            script = str(environment.HERE / "bitsandbytes_models.py")
            command = [str(interpreter), script, str(base), str(tokens), str(out)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            version = json.loads(done.stdout.splitlines()[-1])
            print(f"bitsandbytes {version}, {what}")
            for line in table(out):
                print(line)


def table(saved: Path) -> Iterator[str]:
    """Yield a line of every checkpoint in a folder."""
    import quant
    from quant.checkpoint.inspection import inspect

    for folder in sorted(saved.iterdir()):
        expected = load_file(folder / "expected.safetensors.kept")
        logits = expected.pop("logits")
        weights = quant.load_weights(folder)
        same = sum(
            torch.equal(weights[name].dequantize(theirs.dtype), theirs)
            for name, theirs in expected.items()
        )
        with torch.no_grad():
            ours = quant.load(folder)(TOKENS).logits.float()
        found = inspect(folder)
        yield (
            f"  {folder.name:<11} {found.scheme.name:<15} {found.bits_per_weight:6.3f} bits a "
            f"weight, {same} of {len(expected)} weights equal in all bits ({len(weights)} layers), "
            f"logits of {logits.abs().max():.2f} differ by {(ours - logits).abs().max():.1e}"
        )


def _make_ragged(folder: Path) -> None:
    """Save a random model whose rows blocks of 64 straddle."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=96, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(folder)
