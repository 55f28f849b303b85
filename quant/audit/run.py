"""Audit a checkpoint block by block, on the activations that its own blocks make.

The blocks of the base run as they do when they are quantized (quant.calibrate.stream): the Hessians
of a block are those of its full-precision weights, behind the checkpoint's quantized blocks (and
layers, if the files say that they were made so: true-sequential). These are the Hessians that a
producer had who quantized on the same text. Then the block gets the
checkpoint's weights, and one block is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cuda_ext.ops import resolve_kernel
from quant.audit.checkpoint import ROUNDING, AuditedCheckpoint, Claim, Loose
from quant.audit.coordinates import Coordinates
from quant.audit.gguf import AuditedGguf
from quant.audit.layer import ErrorAlone, Evidence, audit_layer, error_alone
from quant.audit.moments import Moments, moments
from quant.audit.verdict import NOT_JUDGED, NOT_QUANTIZED, Verdict, judge, judge_alone
from quant.blocks import linear_layers, set_weight_matrix, weight_matrix
from quant.calibrate.layers import BlockSolver, Solved
from quant.calibrate.run import Progress
from quant.calibrate.sink import NoSink
from quant.calibrate.source import BlockSource
from quant.calibrate.stream import Workplace, quantize_blocks
from quant.calibrate.transform import UNCHANGED, Changed
from quant.checkpoint.tensors import TensorReader
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.hessian import Hessian
from quant.memory.limits import free_memory
from quant.memory.plan import plan_quantization
from quant.memory.shapes import model_shape
from quant.rules import RTN, Rules
from quant.scheme import Scheme
from quant.solvers import gptq
from quant.weight import QuantizedWeight

# The scheme is not used: every layer is audited on its own.
CONFIG = QuantizationConfig(gptq.SOLVER, Scheme(4), rules=Rules(True, RTN), arithmetic="fast")
SEQUENTIAL = replace(CONFIG, options=gptq.Options(true_sequential=True))
# The solver's codes on a checkpoint's grids, and their coordinates, by full layer name.
Resolved = dict[str, tuple[QuantizedWeight, Coordinates]]


@dataclass(frozen=True)
class LayerAudit:
    """The audit of one linear layer in the blocks.

    scheme           name of its scheme, or type in a GGUF file; None if it is not quantized.
    bits_per_weight  stored bits, scales and zero-points included.
    evidence         None if it is not quantized, or no token reached it.
    """

    name: str
    block: int
    outputs: int
    inputs: int
    verdict: Verdict
    scheme: str | None = None
    bits_per_weight: float | None = None
    evidence: Evidence | ErrorAlone | None = None


@dataclass(frozen=True)
class Audit:
    """The audit of a checkpoint.

    differing  other tensors (norms, embeddings) that differ from the base's, with the share of
               their values. Methods that scale weights change norms; a fine-tuned sibling of the
               base differs in its embeddings.
    tokens     tokens of the calibration text.
    said       what else was found, in words: how far quantized embeddings are from the base's.
    """

    folder: Path
    claim: Claim
    layers: list[LayerAudit]
    differing: dict[str, float]
    tokens: int
    said: list[str] = field(default_factory=list)


def audit(
    folder: str | Path,
    source: BlockSource,
    base: str | Path,
    calibration: Sequence[Tensor],
    progress: Progress | None = None,
    resolved: Resolved | None = None,
    activations: str = "auto",
    scratch: Path | None = None,
) -> Audit:
    """Audit a checkpoint against the base model of `source`, whose folder is `base`.

    folder       of the checkpoint, or a GGUF file.
    calibration  windows of token ids [tokens].
    resolved     filled with the solver's codes of every quantized layer: a byte for every weight.
    activations  where hidden states wait between blocks: "cuda", "cpu" or "disk" (in the folder
                 `scratch`); "auto": the first of these with enough room.

    Raises ArtifactError for a checkpoint that cannot be read or is of another model,
    MemoryPlanError if a block and the hidden states do not fit, and the errors of
    quant.calibrate.stream.quantize_blocks.
    """
    plan = plan_quantization(
        model_shape(source.model),
        CONFIG,
        tokens=sum(map(len, calibration)),
        window=max(map(len, calibration), default=0),
        limits=free_memory(source.device, scratch),
        activations=activations,
    )
    found: list[LayerAudit] = []
    opened: AuditedGguf | AuditedCheckpoint
    if Path(folder).is_file():
        opened = AuditedGguf(folder, source.model)
    else:
        opened = AuditedCheckpoint(folder, source.model)
    with opened as checkpoint:
        with TensorReader(Path(base), mapped=False) as stored:
            differing = dict(checkpoint.differing(stored))
            said = list(checkpoint.outside(stored))
        kernel = resolve_kernel("auto", source.device)
        auditor = partial(
            BlockAuditor, checkpoint=checkpoint, found=found, on=kernel, resolved=resolved
        )
        place = Workplace(activations=plan.activations, folder=scratch)
        claim = checkpoint.claim
        how = SEQUENTIAL if claim.true_sequential else CONFIG
        quantize_blocks(source, calibration, how, NoSink(), progress, place, solvers=auditor)
    return Audit(Path(folder), claim, found, differing, sum(map(len, calibration)), said)


@dataclass(frozen=True)
class BlockAuditor(BlockSolver):
    """Audits the layers of one block where BlockSolver would solve them."""

    checkpoint: AuditedCheckpoint | AuditedGguf = field(kw_only=True)
    found: list[LayerAudit] = field(kw_only=True)
    on: str = field(kw_only=True)
    resolved: Resolved | None = field(kw_only=True)

    def group(
        self,
        names: tuple[str, ...],
        hessian: Hessian | None,
        device: torch.device | None = None,  # noqa: ARG002
        changed: Changed = UNCHANGED,  # noqa: ARG002
    ) -> Solved:
        """Audit layers that share one Hessian, and give their modules the checkpoint's weights."""
        linears = linear_layers(self.block)
        seen = None
        if hessian is not None and hessian.tokens:
            seen = moments(hessian.take().float(), hessian.tokens)
        for name in names:
            full = f"{self.name}.{name}"
            self.found.append(self._audited(full, linears[name], seen))
            self.solved(full)
        return []

    def _audited(self, name: str, module: nn.Module, seen: Moments | None) -> LayerAudit:
        weight = weight_matrix(module).float()
        outputs, inputs = weight.shape
        found = self.checkpoint.read(name)
        if found is None:
            stored = self.checkpoint.dense(name)
            if stored.shape != weight.shape:
                raise _shape_error(self.checkpoint.folder, name, stored.shape, weight.shape)
            set_weight_matrix(module, stored, name)
            same = torch.allclose(stored, weight, rtol=ROUNDING, atol=0)
            why = "its weight is the base's" if same else "its weight is not the base's either"
            verdict = Verdict(NOT_QUANTIZED, why)
            return LayerAudit(name, self.index, outputs, inputs, verdict)
        shape = found.values.shape if isinstance(found, Loose) else found.shape
        if tuple(shape) != tuple(weight.shape):
            raise _shape_error(self.checkpoint.folder, name, shape, weight.shape)
        if isinstance(found, Loose):
            return self._alone(name, module, seen, found)
        kind = self.checkpoint.type_of(name, found)
        bits = self.checkpoint.stored_bits(name, found) / (outputs * inputs)
        if seen is None:
            return self._unseen(name, module, found.dequantize(), kind, bits)
        evidence, better, coordinates = audit_layer(weight, found, seen, self.on, name)
        set_weight_matrix(module, coordinates.unscaled(found.dequantize()), name)
        if self.resolved is not None:
            self.resolved[name] = (better, coordinates)
        verdict = judge(evidence)
        return LayerAudit(name, self.index, outputs, inputs, verdict, kind, bits, evidence)

    def _alone(
        self, name: str, module: nn.Module, seen: Moments | None, found: Loose
    ) -> LayerAudit:
        """Audit a layer without a grid by its error alone."""
        outputs, inputs = found.values.shape
        bits = found.bits / (outputs * inputs)
        if seen is None:
            return self._unseen(name, module, found.values, found.kind, bits)
        weight = weight_matrix(module).float()
        evidence, coordinates = error_alone(weight, found.values, seen, found.scaled)
        set_weight_matrix(module, coordinates.unscaled(found.values), name)
        verdict = judge_alone(evidence, found.kind, found.why)
        return LayerAudit(name, self.index, outputs, inputs, verdict, found.kind, bits, evidence)

    def _unseen(
        self, name: str, module: nn.Module, values: Tensor, kind: str, bits: float
    ) -> LayerAudit:
        outputs, inputs = values.shape
        set_weight_matrix(module, values, name)
        verdict = Verdict(NOT_JUDGED, "no token of the text reached it: use more text")
        return LayerAudit(name, self.index, outputs, inputs, verdict, kind, bits)


def _shape_error(
    folder: Path, name: str, found: Sequence[int], expected: Sequence[int]
) -> ArtifactError:
    return ArtifactError(
        f"{folder}: {name} is {list(found)} (outputs, inputs), but the base has {list(expected)}: "
        "name the model that the checkpoint was made from with --base."
    )
