"""What a suite gets and what it gives back: every suite is one function of these two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.records.record import Metric

Streamed = Callable[[Sequence[Tensor], Callable[[int, int], None]], Iterator[Tensor]]


def _no_reference() -> Any:
    raise ValueError("this model was not quantized, so there are no packed weights to load again.")


@dataclass(frozen=True)
class SuiteContext:
    """The packed model under test and what is needed to compare it with full precision.

    model       the loaded Hugging Face causal LM, in eval mode, on `device`.
    tokenizer   its tokenizer.
    load_twin   loads the full-precision model the cell started from (same dtype and device);
                returns `model` itself when the cell is not quantized.
    data_dir    folder in which relative paths of texts and task files are looked for first.
    context_length  tokens of a window; None: the model's own maximum.
    streamed    set when the model is not whole in memory: streamed(batches, done) yields the logits
                of batches of ids in their order; `model` is then without weights in its blocks.
    progress    called as progress(done, total, what) from time to time; never None.
    has_original  load_twin gives the model from before quantization; False for a checkpoint that
                was quantized elsewhere, whose twin is its own weights, dequantized.
    load_reference  loads the quantized model again with the reference kernel; ValueError without
                an artifact to load.
    """

    model: Any
    tokenizer: Any
    load_twin: Callable[[], Any]
    quantized: bool
    kernel: str
    device: str
    dtype: str
    seed: int
    data_dir: Path | None
    progress: Callable[[int, int, str], None]
    context_length: int | None = None
    has_original: bool = True
    load_reference: Callable[[], Any] = _no_reference
    streamed: Streamed | None = None


@dataclass(frozen=True)
class SuiteResult:
    """Figures, the hashes of what they were measured on, and the score of every document."""

    metrics: list[Metric]
    inputs: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
