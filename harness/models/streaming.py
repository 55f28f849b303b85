"""Models that run block by block: the source of blocks, the shape, and the memory needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema import RuntimeConfig
from harness.data import protocols
from harness.data.config import CalibConfig
from harness.errors import ModelError
from harness.models.described import encoder_decoder
from harness.models.folders import chosen_weights
from harness.models.model import Model, Place, QuantizedModel, StoredModel
from harness.records.leases import held

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from quant.allocation import AskedScheme
    from quant.calibrate.source import BlockSource
    from quant.checkpoint.source import ArtifactSource, CheckpointSource
    from quant.config import QuantizationConfig
    from quant.memory.plan import MemoryPlan
    from quant.memory.shapes import ModelFacts, ModelShape
    from quant.transforms.base import Transform

_log = logging.getLogger("harness")
ALWAYS, NEVER, AUTO = "always", "never", "auto"


def with_attention(model: StoredModel | QuantizedModel) -> StoredModel | QuantizedModel:
    """The model with eager attention if its architecture has no sdpa."""
    if model.config.attention == "eager" or model_facts(model).sdpa:
        return model
    return replace(model, config=replace(model.config, attention="eager"))


def model_facts(model: StoredModel | QuantizedModel) -> ModelFacts:
    """Facts of a model from its config.json; ModelError if it cannot be built."""
    return _shape(model)[1]


def open_source(model: StoredModel, device: str, results: Path) -> CheckpointSource:
    """The full-precision model as a source of blocks; pickled weights are converted in `results`.

    Raises ArtifactError for files that cannot be read.
    """
    import torch

    from quant.checkpoint.source import CheckpointSource

    return CheckpointSource(
        _readable_folder(model, results),
        getattr(torch, model.config.dtype),
        device,
        attn_implementation=model.config.attention,
        trust_remote_code=model.config.trust_remote_code,
    )


def open_packed(
    model: Model, folder: Path, place: Place, transforms: Sequence[Transform] = ()
) -> ArtifactSource:
    """The packed weights in `folder` as a source of blocks; ArtifactError."""
    import torch

    from quant.checkpoint.source import ArtifactSource

    return ArtifactSource(
        folder,
        kernel=place.kernel,
        device=place.device,
        dtype=getattr(torch, model.config.dtype),
        levels=() if place.levels is None else (place.levels,),
        transforms=transforms,
        attn_implementation=model.config.attention,
        trust_remote_code=model.config.trust_remote_code,
    )


def quantization_memory(
    model: StoredModel,
    quantization: QuantizationConfig,
    calib: CalibConfig | None,
    runtime: RuntimeConfig,
    results: Path,
) -> MemoryPlan:
    """Plan the memory of a quantization from the model's config.json, without reading weights.

    calib  None for a solver without calibration.

    Raises MemoryPlanError, with the figures, if it does not fit, and ModelStructureError if too
    small a share of the model can be quantized.
    """
    from quant.coverage import require_coverage
    from quant.memory.limits import free_memory
    from quant.memory.plan import plan_quantization

    shape, model_config = _shape(model)
    require_coverage(model_config.coverage, model.name, quantization.rules)
    window = sequences = 0
    if calib is not None:
        context = model.config.context
        window = calib.length or protocols.context_length(model_config, context)
        sequences = calib.sequences
    return plan_quantization(
        shape,
        quantization,
        tokens=sequences * window,
        window=window,
        limits=free_memory(runtime.device, results),
        activations=runtime.activations,
    )


@dataclass
class StreamedModel:
    """Logits of a model that is processed block by block, for suites that support it.

    wish         where to store hidden states between blocks: "auto", "cuda", "cpu" or "disk".
    folder       for hidden states on disk.
    activations  where they were stored; set by `logits`.
    """

    source: BlockSource
    shape: ModelShape
    wish: str
    folder: Path
    activations: str | None = None

    def logits(
        self, batches: Sequence[Tensor], done: Callable[[int, int], None]
    ) -> Iterator[Tensor]:
        """Yield the logits [batch, tokens, vocabulary] of every batch of ids, in order.

        done(blocks, total) is called after every block. Raises MemoryPlanError if it does not fit.
        """
        from quant.calibrate.activations import activation_store
        from quant.calibrate.capture import check_streaming, stream_logits
        from quant.memory.limits import free_memory
        from quant.memory.plan import plan_evaluation

        device = self.source.device
        window = max(batch.shape[1] for batch in batches)
        largest = max(batch.numel() for batch in batches)  # many short windows, or few long ones
        plan = plan_evaluation(
            self.shape,
            tokens=sum(batch.numel() for batch in batches),
            window=window,
            batch=-(-largest // window),
            limits=free_memory(device, self.folder),
            activations=self.wish,
        )
        self.activations = plan.activations
        first, last = batches[0][0], batches[-1][-1]
        model_structure = check_streaming(
            self.source, first, last.flip(0) if last is first else last
        )
        count = len(self.source.blocks)
        with activation_store(plan.activations, device, self.folder) as store:
            yield from stream_logits(
                self.source, model_structure, batches, store, lambda block: done(block, count)
            )


def streams(
    model: Model,
    artifact: Path | None,
    runtime: RuntimeConfig,
    batch: int,
    scheme: AskedScheme | None = None,
) -> bool:
    """Whether a model is measured block by block: as configured, or because it does not fit.

    artifact  folder of the packed weights under test; None for full precision.
    batch     windows per forward pass of the suite.
    scheme    of the packed weights.
    """
    from quant.memory.limits import free_memory
    from quant.memory.plan import fits_whole

    if runtime.stream != AUTO:
        return runtime.stream == ALWAYS
    shape, model_config = measured_shape(model, artifact, scheme)
    window = protocols.context_length(model_config, model.config.context)
    return not fits_whole(shape, window, batch, free_memory(runtime.device))


def parameters(model: StoredModel) -> int:
    """Number of parameters, from the model's config.json."""
    return shape_of(model).parameters


def shape_of(model: StoredModel) -> ModelShape:
    """What decides its memory use, from the model's config.json."""
    return _shape(model)[0]


def measured_shape(
    model: Model, artifact: Path | None, scheme: AskedScheme | None = None
) -> tuple[ModelShape, ModelFacts]:
    """Shape and facts of the model under test, with what is packed in its artifact."""
    shape, model_config = _shape(model)
    if artifact is not None:
        shape = shape.packed_outside(scheme)
        stored = sum(file.stat().st_size for file in chosen_weights(artifact).paths)
        block = max(0, stored - shape.outside_bytes) // shape.blocks
        shape = replace(shape, block_bytes=block)
    return shape, model_config


def refuse_whole_model(
    suite: str,
    streaming: Sequence[str],
    model: Model,
    artifact: Path | None,
    device: str,
    scheme: AskedScheme | None = None,
) -> ModelError:
    """The error for a suite that needs the whole model in memory although it does not fit.

    streaming  the suites of the cell that can stream.
    """
    from quant.memory.plan import size

    shape, _ = measured_shape(model, artifact, scheme)
    alone = f"measure only suite=[{','.join(streaming)}], which streams, " if streaming else ""
    return ModelError(
        f"suite {suite} needs the whole model in memory, but model={model.name} takes "
        f"{size(shape.whole_bytes)}, more than {device} has: {alone}use a larger device, "
        "or runtime.stream=never to try all the same."
    )


def _shape(model: Model) -> tuple[ModelShape, ModelFacts]:
    assert model.folder is not None  # random weights are never streamed
    dtype, trust = model.config.dtype, model.config.trust_remote_code
    facts = _facts_of(model.folder, dtype, model.checkpoint is not None, trust)
    return facts.shape, facts


@lru_cache(maxsize=8)
def _facts_of(folder: Path, dtype: str, quantized: bool, trust: bool) -> ModelFacts:
    from quant.memory.shapes import cached_facts

    def find() -> ModelFacts:
        return _find_facts(folder, dtype, quantized, trust)

    # The model's own code may depend on more than its config.json, so it is not cached.
    return find() if trust else cached_facts(folder, dtype, quantized, find)


def skeleton(folder: Path, dtype: str, quantized: bool, trust: bool) -> PreTrainedModel:
    """The model that config.json describes, without weights; ArtifactError."""
    import torch

    from quant.checkpoint.skeleton import build_causal_lm, build_skeleton

    options = {"trust_remote_code": trust}
    if quantized:
        return build_skeleton(folder, getattr(torch, dtype), options)
    advice = "Correct it, or use a decoder-only model that this version of transformers knows."
    return build_causal_lm(folder, getattr(torch, dtype), options, advice)


def _find_facts(folder: Path, dtype: str, quantized: bool, trust: bool) -> ModelFacts:
    import transformers

    from quant.blocks import find_blocks, named_layers, weight_matrix
    from quant.calibrate.foreseen import CannotLook, foresee
    from quant.coverage import coverage
    from quant.errors import QuantizationError
    from quant.memory.shapes import ModelFacts, model_shape
    from quant.pruning.units import find_columns, find_heads, of_all

    file = folder / "config.json"
    try:
        model = skeleton(folder, dtype, quantized, trust)
        if getattr(model.config, "is_encoder_decoder", False):
            raise ModelError(encoder_decoder(str(folder), model.config.model_type))
        shape = model_shape(model)
    except QuantizationError as error:
        kind = _encoder_decoder_kind(folder)
        raise ModelError(encoder_decoder(str(folder), kind) if kind else str(error)) from error
    except ModelError:
        raise
    except Exception as error:  # constructors of transformers raise any type
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            f"transformers {transformers.__version__} cannot build a model from {file} "
            f"({said[:200]}): correct it to that of the original model."
        ) from error
    parts = [each for each in model.modules() if isinstance(each, transformers.PreTrainedModel)]
    sdpa = all(type(each)._supports_sdpa for each in parts)
    length = protocols.stated_length(model.config)
    blocks = find_blocks(model)
    shapes = {name: weight_matrix(module).shape for name, module in named_layers(blocks).items()}
    linears = {name: (int(outputs), int(inputs)) for name, (outputs, inputs) in shapes.items()}
    units = (of_all(find_columns, blocks.modules), of_all(find_heads, blocks.modules))
    kind, covered = model.config.model_type, coverage(blocks)
    facts = ModelFacts(shape, kind, length, covered, sdpa, linears, *units)
    if quantized:
        return facts  # nothing is done to it
    try:
        seen = foresee(model)  # the last, because it marks layers
    except CannotLook as error:  # a transform that does not fit is refused by the quantization
        _log.info("%s is not looked at for transforms: %s", file, error)
        return facts
    return replace(facts, inputs=seen.inputs, stream=seen.stream)


def _encoder_decoder_kind(folder: Path) -> str | None:
    """The architecture of a model that is an encoder-decoder by its defaults; None for others."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # the error is reported by the caller
        return None
    return str(config.model_type) if getattr(config, "is_encoder_decoder", False) else None


def _readable_folder(model: StoredModel, results: Path) -> Path:
    """The model's folder; for pickled weights (.bin) a converted copy in the results folder."""
    folder = model.folder
    if not chosen_weights(folder).pickled:
        return folder
    from quant.checkpoint.convert import convert

    converted = results / "converted" / model.fingerprint[:12]
    with held(results / ".locks" / f"converted-{converted.name}.lock"):
        if not (converted / "config.json").is_file():
            convert(folder, converted, code=model.config.trust_remote_code)
    return converted
