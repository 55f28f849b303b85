"""PrunedSource: a model without the parts that a transform removes, read block by block.

The model is built from the configuration that the artifact will have, so what is calibrated is what
is loaded later. Before it is used it is compared with the whole model whose removed parts are
masked: removed blocks pass their input through, removed columns get zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from quant.arithmetic import PORTABLE, resolve_arithmetic
from quant.blocks import find_blocks, set_weight_matrix
from quant.calibrate.capture import (
    capture,
    logits_after_blocks,
    observe,
    run_block,
    streamed_logits,
)
from quant.calibrate.source import each_block
from quant.calibrate.structure import ModelStructure, evaluation
from quant.calibrate.wide import WideCalls, wide_buffers
from quant.calibrate.windows import check_windows
from quant.checkpoint.matching import tensor_of
from quant.checkpoint.skeleton import build_from
from quant.checkpoint.source import SkeletonSource
from quant.config import QuantizationConfig
from quant.coverage import coverage
from quant.errors import ModelStructureError
from quant.memory.shapes import model_shape
from quant.pruning.cut import Cut, config_without, note_removed
from quant.pruning.running import masked, resident, running_on
from quant.scheme import Scheme
from quant.transforms.base import Transform

_TOKENS = 64  # on which the pruned model is compared with the masked one
_ALLOWED = 1e-5  # of the largest logit; both are computed in float64


class PrunedSource(SkeletonSource):
    """What a cut leaves of a model that another source reads.

    cut      what was removed.
    removed  number of weights of the blocks' matrices that were removed.
    """

    def __init__(self, whole: SkeletonSource, cut: Cut) -> None:
        self.cut, self._whole = cut, whole
        self._renamed = cut.renamed(whole.blocks)
        shapes = {new: self._shape(old) for new, old in self._smaller()}
        model = build_from(
            whole.model, config_without(whole.model.config, cut, len(whole.blocks), shapes)
        )
        self.removed = coverage(whole.blocks).total - coverage(find_blocks(model)).total
        note_removed(model.config, self.removed)
        self._shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        super().__init__(model, self._cut_tensor, whole.device)

    def __exit__(self, *_: object) -> None:
        """Do nothing: the source of the whole model is closed by its owner."""

    def _smaller(self) -> Iterator[tuple[str, str]]:
        """Yield the new and the old name of every layer that becomes smaller."""
        for new, old in self._renamed.items():
            for layer in {**self.cut.outputs, **self.cut.inputs}:
                if layer.startswith(f"{old}."):
                    yield new + layer.removeprefix(old), layer

    def _shape(self, layer: str) -> tuple[int, int]:
        outputs, inputs = tensor_of(self._whole.model, f"{layer}.weight").shape
        rows, columns = self.cut.outputs.get(layer), self.cut.inputs.get(layer)
        return (
            outputs if rows is None else len(rows),
            inputs if columns is None else len(columns),
        )

    def _cut_tensor(self, name: str) -> Tensor:
        old = self._old_name(name)
        held = tensor_of(self._whole.model, old)
        value = self._whole.tensor(old) if held.is_meta else held.detach()
        value = self.cut.tensor(old, value)
        if value.shape != self._shapes.get(name, value.shape):
            raise ModelStructureError(
                f"{old} is {list(value.shape)} without what is removed, and its config.json would "
                f"make it {list(self._shapes[name])}"
            )
        return value

    def _old_name(self, name: str) -> str:
        blocks = f"{self._whole.blocks.name}."
        if not name.startswith(blocks):
            return name
        number, dot, rest = name.removeprefix(blocks).partition(".")
        return self._renamed[blocks + number] + dot + rest


def pruned(
    source: SkeletonSource,
    transform: Transform,
    options: Any,
    calibration: Sequence[Tensor],
    config: QuantizationConfig,
) -> PrunedSource:
    """Score the parts of a model on calibration windows [tokens], and return it without some.

    Raises ModelStructureError for a model that cannot be built without them, or computes something
    else than the whole one whose parts are masked.
    """
    assert transform.prune is not None
    check_windows(calibration, source.model)
    model, windows = source.model, calibration[: options.windows]
    arithmetic = resolve_arithmetic(
        config.arithmetic, source.device.type, model_shape(model).parameters
    )
    structure = observe(source, windows[0])
    with evaluation(model):
        scheme = config.layers
        assert isinstance(scheme, Scheme)  # a budget has no transforms
        with resident(source), _wide(model, arithmetic == PORTABLE):
            cut = transform.prune(running_on(source, structure, scheme, windows), options)
        tokens = windows[0][None, :_TOKENS]
        expected = _masked_logits(source, structure, cut, tokens)
        try:
            left = PrunedSource(source, cut)
            with _wide(left.model, True), evaluation(left.model):
                logits = streamed_logits(left, tokens)
        except Exception as error:  # transformers raises any type
            said = " ".join(str(error).split())[:200]
            raise _refused(source, transform, cut, f"it does not run ({said})") from error
    apart, size = float((logits - expected).abs().max()), float(expected.abs().max())
    if not apart <= _ALLOWED * size:
        why = f"its logits differ by up to {apart:.3g} from those of the whole model with masks"
        raise _refused(source, transform, cut, why)
    return left


def _refused(
    source: SkeletonSource, transform: Transform, cut: Cut, why: str
) -> ModelStructureError:
    return ModelStructureError(
        f"transform {transform.name} cannot remove {cut.said} of {type(source.model).__name__}: "
        f"{why}; leave it out, or use another model."
    )


@contextmanager
def _wide(model: PreTrainedModel, wide: bool) -> Iterator[None]:
    """Compute in float64 inside, if `wide`."""
    with wide_buffers(model) if wide else nullcontext(), WideCalls() if wide else nullcontext():
        yield


def _masked_logits(
    source: SkeletonSource, structure: ModelStructure, cut: Cut, tokens: Tensor
) -> Tensor:
    """Return the logits of the whole model for tokens [1, tokens], with what is cut masked."""
    model = source.model
    with _wide(model, True):
        captured = capture(model, structure, [tokens])
        hidden = captured.hidden[0]
        with closing(each_block(source)) as blocks:
            for index in blocks:
                if index in cut.blocks:
                    continue
                with _masks(source, index, cut):
                    hidden = run_block(
                        source.blocks.modules[index],
                        structure.structures[index],
                        captured.calls[index][0],
                        hidden,
                    )
        return logits_after_blocks(model, structure, tokens, hidden)


@contextmanager
def _masks(source: SkeletonSource, index: int, cut: Cut) -> Iterator[None]:
    """Mask the removed columns of the layers of a block, and give layers their new weights."""
    prefix, model = f"{source.blocks.block_name(index)}.", source.model
    with ExitStack() as stack:
        for layer, kept in cut.inputs.items():
            if layer.startswith(prefix):
                stack.enter_context(masked(model.get_submodule(layer), kept))
        for layer, weight in cut.weights.items():
            if layer.startswith(prefix):  # the block is released afterwards
                set_weight_matrix(model.get_submodule(layer), weight, layer)
        yield
