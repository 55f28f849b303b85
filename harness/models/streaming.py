"""Where a cell's model comes from when it is worked on block by block, and what that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema import CellConfig, ModelConfig
from harness.data import protocols
from harness.errors import ModelError
from harness.models.checkpoints import find_checkpoint
from harness.models.folders import folder_fingerprint, model_folder

if TYPE_CHECKING:
    from torch import Tensor

    from quant.calibrate.layers import QuantizationPlan
    from quant.calibrate.source import BlockSource
    from quant.checkpoint.source import ArtifactSource, CheckpointSource
    from quant.memory.plan import MemoryPlan, ModelShape
    from quant.memory.shapes import ModelFacts

ALWAYS, NEVER, AUTO = "always", "never", "auto"
STREAMING = ("perplexity",)  # suites that can measure a model that is never whole in memory


def open_source(config: CellConfig) -> CheckpointSource:
    """The full-precision model of a cell as a source of blocks; pickled weights are converted.

    ModelError when it is not on this machine, ArtifactError for files that cannot be read.
    """
    import torch

    from quant.checkpoint.source import CheckpointSource

    return CheckpointSource(
        _readable_folder(config),
        getattr(torch, config.model.dtype),
        config.runtime.device,
        attn_implementation=config.model.attention,
    )


def quantization_memory(config: CellConfig, plan: QuantizationPlan) -> MemoryPlan:
    """The memory that quantizing takes, from the model's config.json; no weight is read.

    Raises MemoryPlanError, with the figures, when it does not fit.
    """
    from quant.memory.limits import free_memory
    from quant.memory.plan import plan_quantization

    shape, model_config = _shape(config)
    length = config.calib.length or protocols.context_length(model_config, config.model.context)
    return plan_quantization(
        shape,
        plan,
        tokens=config.calib.sequences * length,
        window=length,
        limits=free_memory(config.runtime.device, Path(config.paths.results)),
        activations=config.runtime.activations,
    )


@dataclass
class StreamedModel:
    """Logits of a model that is never whole in memory, for suites that can work so.

    activations  where hidden states waited, once logits were asked for.
    """

    source: BlockSource
    shape: ModelShape
    config: CellConfig
    folder: Path
    activations: str | None = None

    def logits(
        self, batches: Sequence[Tensor], done: Callable[[int, int], None]
    ) -> Iterator[Tensor]:
        """Logits [batch, tokens, vocabulary] of every batch of ids, in their order.

        done(blocks, of all) is called after every block. Raises MemoryPlanError.
        """
        from quant.calibrate.activations import activation_store
        from quant.calibrate.capture import check_streaming, stream_logits
        from quant.memory.limits import free_memory
        from quant.memory.plan import plan_evaluation

        device, runtime = self.source.device, self.config.runtime
        plan = plan_evaluation(
            self.shape,
            tokens=sum(batch.numel() for batch in batches),
            window=max(batch.shape[1] for batch in batches),
            batch=max(batch.shape[0] for batch in batches),
            limits=free_memory(device, self.folder),
            activations=runtime.activations,
        )
        self.activations = plan.activations
        first, last = batches[0][0], batches[-1][-1]
        layout = check_streaming(self.source, first, last.flip(0) if last is first else last)
        count = len(self.source.blocks)
        with activation_store(plan.activations, device, self.folder) as store:
            yield from stream_logits(
                self.source, layout, batches, store, lambda block: done(block, count)
            )


def streams(config: CellConfig, artifact: Path | None) -> bool:
    """Whether a cell's model is measured block by block: as asked for, or because of its size."""
    from quant.memory.limits import free_memory
    from quant.memory.plan import fits_whole

    if config.runtime.stream != AUTO:
        return config.runtime.stream == ALWAYS
    shape, model_config = measured_shape(config, artifact)
    window = protocols.context_length(model_config, config.model.context)
    suite = config.suite.perplexity
    batch = 1 if suite is None else suite.batch_size
    return not fits_whole(shape, window, batch, free_memory(config.runtime.device))


def open_packed(config: CellConfig, artifact: Path) -> ArtifactSource:
    """The packed weights that suites measure, as a source of blocks; ArtifactError."""
    import torch

    from quant.checkpoint.source import ArtifactSource

    return ArtifactSource(
        artifact,
        kernel=config.runtime.kernel,
        device=config.runtime.device,
        dtype=getattr(torch, config.model.dtype),
        attn_implementation=config.model.attention,
    )


def measured_shape(config: CellConfig, artifact: Path | None) -> tuple[ModelShape, ModelFacts]:
    """Shape of, and what is known of, the model that suites measure; packed blocks are smaller."""
    shape, model_config = _shape(config)
    if artifact is not None:
        stored = sum(file.stat().st_size for file in artifact.glob("*.safetensors"))
        block = max(0, stored - shape.outside_bytes) // shape.blocks
        shape = replace(shape, block_bytes=block)
    return shape, model_config


def refuse_whole_model(stage: str, config: CellConfig, artifact: Path | None) -> ModelError:
    """What to say when a suite needs the whole model in memory and may not have it."""
    from quant.memory.plan import size

    shape, _ = measured_shape(config, artifact)
    return ModelError(
        f"suite {stage} needs the whole model in memory, but model={config.model.name} takes "
        f"{size(shape.whole_bytes)}, more than there is on {config.runtime.device}: measure only "
        "suite=[perplexity], which streams, use a larger device, or runtime.stream=never to try "
        "all the same."
    )


def _shape(config: CellConfig) -> tuple[ModelShape, ModelFacts]:
    folder = model_folder(config.model)
    if folder is None:
        raise ModelError(
            f"model={config.model.name} is not on this machine yet, so its memory is unknown."
        )
    facts = _facts_of(folder, config.model.dtype, find_checkpoint(config.model) is not None)
    return facts.shape, facts


@lru_cache(maxsize=8)
def _facts_of(folder: Path, dtype: str, quantized: bool) -> ModelFacts:
    from quant.memory.shapes import cached_facts

    return cached_facts(folder, dtype, quantized, lambda: _find_facts(folder, dtype, quantized))


def _find_facts(folder: Path, dtype: str, quantized: bool) -> ModelFacts:
    import torch

    from quant.checkpoint.skeleton import build_causal_lm, build_skeleton
    from quant.memory.plan import model_shape
    from quant.memory.shapes import ModelFacts

    if quantized:
        model = build_skeleton(folder, getattr(torch, dtype), {})
    else:
        advice = "Copy it again from where it came from."
        model = build_causal_lm(folder, getattr(torch, dtype), {}, advice)
    length = protocols.stated_length(model.config)
    return ModelFacts(model_shape(model), model.config.model_type, length)


def _readable_folder(config: CellConfig) -> Path:
    """The model's folder; for pickled weights (.bin) a converted copy in the results folder."""
    folder = _complete_folder(config.model)
    if any(folder.glob("*.safetensors")) or not any(folder.glob("pytorch_model*.bin")):
        return folder
    from quant.checkpoint.convert import convert

    digest = folder_fingerprint(folder)[:12]
    converted = Path(config.paths.results) / "converted" / f"{config.model.name}-{digest}"
    if not (converted / "config.json").is_file():
        convert(folder, converted)
    return converted


def _complete_folder(config: ModelConfig) -> Path:
    folder = model_folder(config, download=True)
    assert folder is not None
    return folder
