"""The model under test of a cell: where it comes from, and what it is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell.cells import ResolvedCell
from harness.errors import StoreError
from harness.models.checkpoints import load_packed, packed_shapes
from harness.models.folders import weights_read
from harness.models.model import Model, RandomModel, StoredModel
from harness.models.streaming import open_packed, open_source, streams
from harness.records.record import QUANTIZATION, Record
from harness.records.store import artifact_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from quant.checkpoint.source import ArtifactSource, CheckpointSource
    from quant.scheme import Scheme
    from quant.transforms.base import Transform


class Subject:
    """The model under test and its tokenizer, loaded when the first suite asks for them."""

    def __init__(self, cell: ResolvedCell) -> None:
        self._cell = cell
        self._model: Any = None
        self._streams: bool | None = None
        self._tokenizer: Any = None
        self._weights: dict[str, Any] | None = None
        self.inputs: dict[str, str] = {}
        self.bits_per_weight: float | None = None
        self.coverage: float | None = None
        self.outside: list[str] = []
        self.quantized = cell.quantized
        self.has_original = cell.model.checkpoint is None
        # The packed weights that are measured, made here or elsewhere; None: full precision, or
        # random weights.
        self.packed = cell.artifact if self.has_original else cell.model.folder

    def model(self) -> Any:
        """The model under test, whole."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def streams(self, batch: int) -> bool:
        """Whether the model is measured block by block; decided once, before anything is loaded.

        batch  windows that the suites which can stream measure at a time.
        """
        if self._streams is None:
            model = self._cell.model
            self._streams = (
                self._model is None
                and not isinstance(model, RandomModel)
                and streams(model, self.packed, self._cell.choices.runtime, batch)
            )
        return self._streams

    def open(self) -> CheckpointSource | ArtifactSource:
        """The model under test as a source of blocks, a context manager."""
        self.check()
        cell = self._cell
        if self.packed is None:
            assert isinstance(cell.model, StoredModel)
            return open_source(cell.model, cell.place.device, cell.choices.results)
        source = open_packed(cell.model, self.packed, cell.place, self._transforms)
        if cell.model.checkpoint is not None:
            shapes, scheme = source.layer_shapes(), cell.model.checkpoint.scheme
            kept = source.operator_bits()
            self._count(source.model, scheme, shapes.values(), kept, set(shapes))
        return source

    def weights(self, model: Any) -> dict[str, Any]:
        """What the record says of the files that `model` was read from; of own artifacts nothing.

        The quantization's record says it of those: their source is what may hold something else.
        """
        folder = self._cell.model.folder
        if folder is None or self._cell.artifact is not None:
            return {}
        if self._weights is None:
            self._weights = weights_read(folder, model)
        return self._weights

    def tokenizer(self) -> Any:
        """The tokenizer, None for random weights."""
        if self._tokenizer is None:
            self._tokenizer = self._cell.model.tokenizer()
        return self._tokenizer

    def baseline(self) -> Any:
        """The full-precision model to compare with; the model itself where there is none."""
        return self._cell.model.baseline(self._cell.place) if self.quantized else self.model()

    def reference(self) -> Any:
        """The quantized model from the same files, dequantized by the reference kernel."""
        if self.packed is None:
            raise ValueError(f"{self._cell.identity.method} leaves no artifact to load again.")
        return self._from_packed(self.packed, "reference")

    def check(self) -> None:
        """Hold the artifact, if there is one, against the record of its making."""
        folder = self._cell.artifact
        if folder is None:
            return
        made = self._cell.find(QUANTIZATION)
        assert made is not None
        _check_artifact(folder, made)
        self.inputs = {"artifact": made.inputs["artifact"]}
        self.bits_per_weight = made.cell.bits_per_weight
        self.coverage, self.outside = made.cell.coverage, made.cell.outside

    def _count(
        self,
        model: Any,
        scheme: Scheme,
        shapes: Iterable[tuple[int, int]],
        operators: int,
        layers: Collection[str] = (),
    ) -> None:
        """What a checkpoint from elsewhere is, counted as of one that is made here.

        operators  bits of what stands in front of layers.
        layers     full names of those that are quantized and not in the model yet.
        """
        from quant.blocks import find_blocks
        from quant.coverage import coverage_of

        found = coverage_of(find_blocks(model), layers)
        each = [(m * n, m * n * scheme.bits_per_weight(n)) for m, n in shapes]
        # A checkpoint may have packed layers outside of the blocks too: they count here.
        weights = sum(count for count, _ in each) + sum(found.kept.values())
        stored = sum((bits for _, bits in each), float(operators))
        self.bits_per_weight = (stored + found.kept_bits) / weights
        self.coverage, self.outside = found.share, found.outside()

    @property
    def _transforms(self) -> list[Transform]:
        return [each.transform for each in self._cell.choices.transforms]

    def _load(self) -> Any:
        model, scheme, place = self._cell.model, self._cell.choices.scheme, self._cell.place
        if self.packed is not None:
            loaded = self._from_packed(self.packed, place.kernel)
            if model.checkpoint is not None:
                from quant.input_operator import operator_bits

                kept = operator_bits(loaded)
                self._count(loaded, model.checkpoint.scheme, packed_shapes(loaded), kept)
            return loaded
        if isinstance(model, RandomModel) and scheme is not None:
            loaded = model.packed(place, scheme)
            self._count(loaded, scheme, packed_shapes(loaded), 0)
            return loaded
        return self._full_precision(model)

    def _full_precision(self, model: Model) -> Any:
        """Only of a cell that quantizes nothing: else another model would bear its name."""
        if self.quantized:
            raise StoreError(
                f"{self._cell.identity.method} left no packed weights to measure, and full "
                "precision is not measured under its name: quantize again."
            )
        return model.load(self._cell.place)

    def _from_packed(self, folder: Path, kernel: str) -> Any:
        self.check()
        cell = self._cell
        if cell.model.checkpoint is not None:
            return cell.model.load(replace(cell.place, kernel=kernel))
        config = cell.model.config
        device, levels = cell.choices.runtime.device, cell.choices.levels
        return load_packed(
            folder,
            kernel,
            device,
            config.dtype,
            config.attention,
            self._transforms,
            levels,
            trust=config.trust_remote_code,
        )


def _check_artifact(folder: Path, made: Record) -> None:
    """What is measured is what was made; quant.load checks every file against the manifest."""
    whole = (folder / "artifact.json").is_file()
    if not whole or artifact_digest(folder) != made.inputs["artifact"]:
        raise StoreError(
            f"the artifact {folder} is not the one that was written when it was quantized: delete "
            "that folder and run the same command again to quantize anew."
        )
