"""Train the embedded model from nothing but a seed: `python -m tools.embedded.train --help`.

The run is deterministic on one machine with one number of threads; another machine gets a model of
the same quality, with other bits.  It can be stopped and continued (`--checkpoint`).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from harness.embedded import MODEL_DIR
from harness.embedded.stories import GENERATOR_VERSION, SEPARATOR, stories
from harness.embedded.tokenizer import train_tokenizer
from tools.embedded.evaluate import rounded, score
from tools.embedded.initial import initialize
from tools.embedded.smooth import smooth


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.  Lengths are in tokens, rows and steps in counts."""

    seed: int = 0
    hidden: int = 256
    feed_forward: int = 1024
    layers: int = 5
    heads: int = 4
    positions: int = 512
    rows: int = 4
    steps: int = 3200
    copying: int = 100
    warmup: int = 100
    # The learning rate is constant between the warm-up and the last part of the run, where it falls
    # linearly to zero.  Until it falls, the number of steps can still be changed.
    decay: float = 0.3
    learning_rate: float = 4.5e-4
    weight_decay: float = 0.1
    clip: float = 1.0
    bfloat16: bool = True
    # A step's rows are shared out among so many threads, each with operators of a single thread: on
    # a busy machine that waits for the others once a step, not at every operator.
    shards: int = 2

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = (step + 1) / self.warmup
        fall = (self.steps - step) / (self.decay * self.steps)
        return self.learning_rate * min(1.0, rise, fall)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    """Return an untrained model in float32."""
    torch.manual_seed(recipe.seed)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            word_embed_proj_dim=recipe.hidden,
            ffn_dim=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=recipe.positions,
            activation_function="relu",
            do_layer_norm_before=True,
            tie_word_embeddings=True,
            dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    initialize(model)
    return model


def rows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Yield endless training rows, int64 of shape (positions,), of stories joined by an empty line.

    Every other row begins with </s> and a whole story; the rest begin somewhere inside one, without
    </s>, as the windows of a perplexity protocol do, or, in the first `copying` steps, repeat one
    passage until the row is full: that teaches in minutes to copy from the context, which stories
    alone teach late.  No story is seen twice.
    """
    number = 0
    for row in range(2**62):
        # Fixed irrational steps spread the cuts and periods: no second random stream to save.
        spread = row * 0.6180339887498949 % 1.0
        copying = row % 2 and row < recipe.copying * recipe.rows
        length = 16 + int(112 * spread) if copying else recipe.positions
        ids: list[int] = []
        skip = 0
        while len(ids) < skip + length:
            story = next(stories("train", 1, recipe.seed, start=number))
            more = tokenizer(story.text + SEPARATOR).input_ids
            number += 1
            if not ids and row % 2:
                skip = 1 + int(len(more) * (spread * 89 % 1.0))
            ids += more[1:] if ids else more
        passage = ids[skip : skip + length]
        yield torch.tensor((passage * (1 + recipe.positions // length))[: recipe.positions])


def _replicas(model: OPTForCausalLM, count: int) -> list[OPTForCausalLM]:
    """Return models that share the weights of `model` and have gradients of their own."""
    replicas = [copy.deepcopy(model) for _ in range(count)]
    for replica in replicas:
        for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
            own.data = shared.data
    return replicas


def _optimizer(model: OPTForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW that decays the matrices of the blocks and nothing else."""
    blocks = [p for p in model.model.decoder.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": blocks, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def machine() -> str:
    """Return what this process runs on, such as "2 threads of AMD EPYC"."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":")[1].strip() if lines else name
    return f"{torch.get_num_threads()} threads of {name}"


class Run:
    """A training run: the model, its optimizer and how far it has come."""

    def __init__(self, recipe: Recipe, checkpoint: Path | None) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.tokenizer = train_tokenizer()
        self.model = new_model(recipe, self.tokenizer)
        self.replicas = [self.model, *_replicas(self.model, recipe.shards - 1)]
        self.pool = ThreadPoolExecutor(recipe.shards)
        self.optimizer = _optimizer(self.model, recipe)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        if checkpoint and checkpoint.exists():
            self._load(checkpoint)

    def train(self, report_every: int) -> None:
        """Train to the recipe's last step."""
        recipe = self.recipe
        source = rows(self.tokenizer, recipe)
        for _ in range(self.step * recipe.rows):
            next(source)
        self.model.train()
        begin, first, total = time.monotonic(), self.step, 0.0
        while self.step < recipe.steps:
            batch = torch.stack([next(source) for _ in range(recipe.rows)])
            total += self._update(batch)
            self.step += 1
            if self.step % report_every == 0 or self.step == recipe.steps:
                now = time.monotonic()
                speed = (self.step - first) * batch.numel() / (now - begin)
                self.seconds += now - begin
                self._report(total / (self.step - first), speed)
                begin, first, total = time.monotonic(), self.step, 0.0

    def _update(self, batch: torch.Tensor) -> float:
        parts = zip(self.replicas, batch.chunk(len(self.replicas)), strict=True)
        losses = list(self.pool.map(lambda part: self._gradient(*part), parts))
        for own, *others in zip(*(model.parameters() for model in self.replicas), strict=True):
            assert own.grad is not None
            for other in others:
                assert other.grad is not None
                own.grad += other.grad
            own.grad /= len(self.replicas)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        self.optimizer.step()
        return sum(losses) / len(losses)

    def _gradient(self, model: OPTForCausalLM, batch: torch.Tensor) -> float:
        torch.set_num_threads(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        return float(loss.detach())

    def _report(self, loss: float, speed: float) -> None:
        self.model.eval()
        held_out = score(self.model, self.tokenizer, stories("validation", 100))
        self.model.train()
        print(
            f"step {self.step}/{self.recipe.steps}  loss {loss:.4f}  {speed:.0f} tokens/s  "
            f"{self.seconds:.0f} s  perplexity {held_out.perplexity:.4f} "
            f"(generator {held_out.generator_perplexity:.4f})  "
            f"last word {held_out.last_word_accuracy:.1%} "
            f"(a distractor {held_out.distractor_share:.1%})",
            flush=True,
        )
        self.history.append({"step": self.step, "loss": loss, **held_out.as_dict()})
        if self.checkpoint:
            self._save(self.checkpoint)

    def _save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = state["history"]
        print(f"continuing at step {self.step}", flush=True)

    def write(self, folder: Path) -> None:
        """Write the model (smoothed, float16), its tokenizer and `training.json` to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        model = OPTForCausalLM(self.model.config)
        model.load_state_dict(self.model.state_dict())
        smooth(model, self.recipe.seed)
        model.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        # The figures are those of the file: loaded again, computed in float32.
        final = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        test = list(stories("test", 400))
        facts: dict[str, Any] = {
            "generator_version": GENERATOR_VERSION,
            "recipe": asdict(self.recipe),
            "steps": self.step,
            "tokens": self.step * self.recipe.rows * self.recipe.positions,
            "seconds": round(self.seconds),
            "machine": machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "parameters": sum(p.numel() for p in final.parameters()),
            "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
            "test": score(final, self.tokenizer, test).as_dict(),
            "test_rounded_to_nearest": {
                str(bits): score(rounded(final, bits), self.tokenizer, test).as_dict()
                for bits in (8, 4, 3, 2)
            },
            "history": self.history,
        }
        (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
        print(json.dumps({key: facts[key] for key in facts if key != "history"}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder of the model")
    parser.add_argument("--checkpoint", type=Path, help="file to save to and continue from")
    parser.add_argument("--report-every", type=int, default=100, help="steps between reports")
    for name, default in asdict(Recipe()).items():
        kind = (lambda text: text == "True") if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (part of the seed)")
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    out, checkpoint = arguments.pop("out"), arguments.pop("checkpoint")
    report_every = arguments.pop("report_every")
    run = Run(Recipe(**arguments), checkpoint)
    run.train(report_every)
    run.write(out)


if __name__ == "__main__":
    main()
