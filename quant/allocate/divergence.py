"""What candidates cost the model if one layer alone has them: the divergence of its output.

KL(p || q) = sum_v p_v (log p_v - log q_v), the mean over tokens, where p is the full-precision
model's distribution of the next token and q that with one layer rounded to nearest.

Blocks before the changed one compute the same, so a model with a changed layer begins at its block.
All changed models of one block run side by side, and the blocks that follow are read once for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext

from torch import Tensor

from cuda_ext.ops import resolve_kernel
from quant.allocate.loss import Sensitivities
from quant.allocation import Allocation
from quant.arithmetic import PORTABLE, resolve_arithmetic
from quant.blocks import linear_layers, named_layers, set_weight_matrix, weight_matrix
from quant.calibrate.capture import (
    capture,
    check_streaming,
    logits_after_blocks,
    run_block,
    stream_logits,
)
from quant.calibrate.run import Progress
from quant.calibrate.source import BlockSource, each_block
from quant.calibrate.structure import ModelStructure, evaluation
from quant.calibrate.survey import survey
from quant.calibrate.wide import WideCalls, wide_buffers
from quant.config import QuantizationConfig
from quant.forward_products import forward_products
from quant.memory.shapes import model_shape
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Layer

_AT_ONCE = 1 << 22  # logits whose divergence is computed at a time


def some_tokens(windows: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """Return the first windows, the last of them cut, that have so many tokens together."""
    found: list[Tensor] = []
    for window in windows:
        left = tokens - sum(map(len, found))
        if left < 2:  # a window has two tokens or more
            break
        found.append(window[:left])
    return found


def measure_divergences(
    source: BlockSource,
    windows: Sequence[Tensor],
    config: QuantizationConfig,
    found: Sensitivities,
    save: Callable[[], None],
    progress: Progress | None = None,
) -> None:
    """Add to `found` what each of the candidates of config.scheme costs each layer, nats a token.

    Layers in `found` are not measured again. save() is called after every block. The layers of the
    model stay as they are. windows [tokens] run one at a time.
    """
    survey(source, config.rules)
    passes = _Passes(source, check_streaming(source, windows[0], windows[-1].flip(0)), config)
    total, done = len(named_layers(source.blocks)), 0
    assert isinstance(config.scheme, Allocation)
    candidates = config.scheme.every
    with evaluation(source.model), passes.buffers():
        passes.capture(windows)
        for index in range(len(source.blocks)):
            layers = passes.layers(index)
            unknown = {
                name: [each for each in candidates if each.name not in found.get(name, {})]
                for name in layers
            }
            for (name, scheme), hidden in passes.changed(index, unknown).items():
                found.setdefault(name, {})[scheme] = passes.divergence(hidden)
            save()
            for name in layers:
                done += 1
                if progress is not None:
                    progress(done, total, name)


class _Passes:
    """Passes of the full-precision model, and of models with one changed layer, block by block."""

    def __init__(
        self, source: BlockSource, structure: ModelStructure, config: QuantizationConfig
    ) -> None:
        self._source, self._structure = source, structure
        parameters = model_shape(source.model).parameters
        arithmetic = resolve_arithmetic(config.arithmetic, str(source.device), parameters)
        self._wide = arithmetic == PORTABLE
        self._kernel = resolve_kernel(config.kernel, source.device)

    def buffers(self) -> AbstractContextManager[object]:
        """Everything runs inside this context."""
        if self._wide:
            return wide_buffers(self._source.model)
        on_cpu = self._source.device.type == "cpu"
        return forward_products(self._kernel, self._source.model) if on_cpu else nullcontext()

    def capture(self, windows: Sequence[Tensor]) -> None:
        """Run the full-precision model: its inputs of block 0, its calls and its last outputs."""
        self._windows = [window[None].long() for window in windows]
        with self._calls():
            captured = capture(self._source.model, self._structure, self._windows)
        self._recorded = captured.calls
        self._inputs = [captured.hidden[at] for at in range(len(windows))]
        last = self._inputs
        with closing(each_block(self._source)) as blocks:
            for index in blocks:
                last = self._through(index, last)
        self._last = last

    def layers(self, index: int) -> list[str]:
        """Full names of the linear layers of a block."""
        name, block = self._source.blocks.block_name(index), self._source.blocks.modules[index]
        return [f"{name}.{each}" for each in linear_layers(block)]

    def changed(
        self, index: int, schemes: Mapping[str, Sequence[Scheme]]
    ) -> dict[tuple[str, str], list[Tensor]]:
        """Return the outputs of the last block, by layer and name of its scheme, of models in which
        one layer of block `index` is rounded to that scheme; go on to the inputs of the next block.
        """
        states: dict[tuple[str, str], list[Tensor]] = {}
        with closing(each_block(self._source, index)) as blocks:
            for at in blocks:
                if at > index:
                    states = {key: self._through(at, each) for key, each in states.items()}
                    continue
                for name, candidates in schemes.items():
                    module = self._source.model.get_submodule(name)
                    whole = weight_matrix(module).clone()
                    for scheme in candidates:
                        solution = rtn.solve(whole.float(), scheme, layer=Layer(name))
                        set_weight_matrix(module, solution.weight.dequantize(), name)
                        states[name, scheme.name] = self._through(at, self._inputs)
                    set_weight_matrix(module, whole, name)
                self._inputs = self._through(at, self._inputs)
                if not states:  # an earlier run measured them
                    break
        return states

    def divergence(self, hidden: Sequence[Tensor]) -> float:
        """Return the divergence of a model with these outputs of the last block, nats a token."""
        total = 0.0
        for ids, full, other in zip(self._windows, self._last, hidden, strict=True):
            total += divergence(self._logits(ids, full), self._logits(ids, other))
        return total / sum(ids.numel() for ids in self._windows)

    def _through(self, index: int, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of a block, which has its weights, for the inputs of every window."""
        block, structure = self._source.blocks.modules[index], self._structure.structures[index]
        with self._calls():
            calls = self._recorded[index]
            return [run_block(block, structure, c, h) for c, h in zip(calls, hidden, strict=True)]

    def _logits(self, ids: Tensor, hidden: Tensor) -> Tensor:
        with self._calls():
            return logits_after_blocks(self._source.model, self._structure, ids, hidden)[0]

    def _calls(self) -> AbstractContextManager[object]:
        return WideCalls() if self._wide else nullcontext()


def divergence(full: Tensor, other: Tensor) -> float:
    """Return the sum over tokens of KL(p || q) of logits [tokens, vocabulary], in float64."""
    total, rows = 0.0, max(1, _AT_ONCE // full.shape[-1])
    for one, two in zip(full.split(rows), other.split(rows), strict=True):
        p, q = one.double().log_softmax(-1), two.double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
    return total


def whole_divergence(full: BlockSource, other: BlockSource, windows: Sequence[Tensor]) -> float:
    """Return the divergence of one model's output from another's, nats a token, block by block."""
    batches = [window[None].long() for window in windows]
    of_full, of_other = (
        stream_logits(each, check_streaming(each, windows[0], windows[-1].flip(0)), batches, [])
        for each in (full, other)
    )
    total = sum(divergence(p[0], q[0]) for p, q in zip(of_full, of_other, strict=True))
    return total / sum(ids.numel() for ids in batches)
