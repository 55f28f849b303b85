"""The model under test of a cell, and the models that it is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell.cells import ResolvedCell
from harness.cell.keys import baseline_key
from harness.errors import StoreError
from harness.models.checkpoints import load_packed, packed_bits
from harness.models.folders import weights_read
from harness.models.model import Model, RandomModel, StoredModel
from harness.models.streaming import open_packed, open_source, skeleton, streams
from harness.records.kept import Kept
from harness.records.record import QUANTIZATION, Record
from harness.records.store import artifact_digest
from quant.scheme import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    import torch

    from quant.checkpoint.source import ArtifactSource, CheckpointSource
    from quant.coverage import Coverage
    from quant.transforms.base import Transform


class Subject:
    """The model under test and its tokenizer, loaded when the first suite asks for them."""

    def __init__(self, cell: ResolvedCell, waiting: Callable[[str], None] = lambda _: None) -> None:
        self._cell = cell
        self._model: Any = None
        self._streams: bool | None = None
        self._tokenizer: Any = None
        self._weights: dict[str, Any] | None = None
        self.inputs: dict[str, str] = {}
        self.bits_per_weight: float | None = None
        self.coverage: float | None = None
        self.outside: list[str] = []
        self.mixture: str | None = None
        self.quantized = cell.quantized
        self.has_original = cell.model.checkpoint is None
        # Folder of the packed weights under test, made here or elsewhere; None for full precision
        # or random weights.
        self.packed = cell.artifact if self.has_original else cell.model.folder
        self.file = None if self.quantized else cell.model.file
        # What suites keep of the full-precision model; waiting(who): another process makes it.
        key = baseline_key(cell.model, cell.choices.runtime.device)
        self.kept = Kept(cell.store, cell.model.name, key, waiting)

    def model(self) -> Any:
        """The model under test, loaded as a whole."""
        if self._model is None:
            self._model = self._load()
        return self._model

    @property
    def loaded(self) -> bool:
        """Whether an earlier suite has loaded the model as a whole."""
        return self._model is not None

    def streams(self, batch: int) -> bool:
        """Whether the model is measured block by block; decided once, before it is loaded.

        batch  windows per forward pass of the suites that can stream.
        """
        if self._streams is None:
            model = self._cell.model
            self._streams = (
                self._model is None
                and not isinstance(model, RandomModel)
                and not self._cell.place.spread
                and streams(
                    model,
                    self.packed,
                    self._cell.choices.runtime,
                    batch,
                    self._cell.choices.scheme,
                )
            )
        return self._streams

    def open(self) -> CheckpointSource | ArtifactSource:
        """The model under test as a source of blocks, to be used as a context manager."""
        self.check()
        cell = self._cell
        if self.packed is None:
            assert isinstance(cell.model, StoredModel)
            return open_source(cell.model, cell.place.device, cell.choices.results)
        source = open_packed(cell.model, self.packed, cell.place, self._transforms)
        if cell.model.checkpoint is not None:
            packed = source.layer_bits()
            self._count(source.model, packed.values(), source.operator_bits(), set(packed))
        return source

    @property
    def has_files(self) -> bool:
        """Whether suites can read the model from its files: not for random weights."""
        model = self._cell.model
        return self.packed is not None or (isinstance(model, StoredModel) and not self.quantized)

    def structure(self) -> Any:
        """The model under test without weights: its parameters are on the meta device.

        Weights that an earlier suite left in memory are given up; a later one loads them again.
        """
        self._model = None
        model = self._cell.model
        if self.packed is None:
            assert isinstance(model, StoredModel)
            config = model.config
            return skeleton(model.folder, config.dtype, False, config.trust_remote_code)
        with self.open() as source:  # counts the stored bits
            found: torch.nn.Module = source.model
        return found.to("meta")  # what lies outside the blocks

    def weights(self, model: Any) -> dict[str, Any]:
        """Record entries on the files that `model` was read from; empty for our own artifact.

        For an artifact, the record of its quantization has the entries of the source model.
        """
        folder = self._cell.model.folder
        if folder is None or self._cell.artifact is not None:
            return {}
        if self._weights is None:
            self._weights = weights_read(folder, model)
        return self._weights

    def tokenizer(self) -> Any:
        """The tokenizer; None for random weights."""
        if self._tokenizer is None:
            self._tokenizer = self._cell.model.tokenizer()
        return self._tokenizer

    def baseline(self) -> Any:
        """The full-precision baseline; the model under test itself if there is none."""
        cell = self._cell
        return cell.model.baseline(cell.baseline_place) if self.quantized else self.model()

    def reference(self) -> Any:
        """The quantized model of the same files, run by the reference kernel."""
        if self.packed is None:
            raise ValueError(f"{self._cell.identity.method} leaves no artifact to load again.")
        return self._from_packed(self.packed, "reference")

    def check(self) -> None:
        """Raise StoreError if the artifact is not the one that its record describes."""
        folder = self._cell.artifact
        if folder is None:
            return
        made = self._cell.find(QUANTIZATION)
        assert made is not None
        _check_artifact(folder, made)
        self.inputs = {"artifact": made.inputs["artifact"]}
        self.bits_per_weight = made.cell.bits_per_weight
        self.coverage, self.outside = made.cell.coverage, made.cell.outside
        self.mixture = made.cell.mixture

    def _count(
        self,
        model: Any,
        packed: Iterable[tuple[int, float]],
        operators: int,
        layers: Collection[str] = (),
    ) -> None:
        """Set bits per weight and coverage of a checkpoint from elsewhere (see `stored`)."""
        self.bits_per_weight, found = stored(model, packed, operators, layers)
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
                self._count(loaded, packed_bits(loaded), kept)
            return loaded
        if isinstance(model, RandomModel) and isinstance(scheme, Scheme):
            loaded = model.packed(place, scheme)
            self._count(loaded, packed_bits(loaded), 0)
            return loaded
        return self._full_precision(model)

    def _full_precision(self, model: Model) -> Any:
        """Load the full-precision model; StoreError if the cell's method is not none."""
        if self.quantized:
            raise StoreError(
                f"{self._cell.identity.method} left no packed weights to measure, and the full-"
                "precision model must not be measured under its name: quantize again."
            )
        return model.load(self._cell.place)

    def _from_packed(self, folder: Path, kernel: str) -> Any:
        self.check()
        cell = self._cell
        if cell.model.checkpoint is not None:
            return cell.model.load(replace(cell.place, kernel=kernel))
        config, place = cell.model.config, cell.place
        return load_packed(
            folder,
            kernel,
            place.device,
            config.dtype,
            config.attention,
            self._transforms,
            place.levels,
            trust=config.trust_remote_code,
            over=place.over(config, cell.model.shape),
        )


def stored(
    model: Any,
    packed: Iterable[tuple[int, float]],
    operators: int = 0,
    layers: Collection[str] = (),
) -> tuple[float, Coverage]:
    """Bits per weight and coverage of a checkpoint from elsewhere, counted as for our own.

    packed     weights and stored bits of every packed layer.
    operators  total bits of the operators in front of layers.
    layers     full names of quantized layers that are not in `model` yet.
    """
    from quant.blocks import find_blocks
    from quant.coverage import coverage_of
    from quant.pruning.cut import removed_weights

    found = coverage_of(find_blocks(model), layers)
    each = list(packed)
    # The head may be packed, and a checkpoint from elsewhere may have other packed layers
    # outside the blocks; they count too.
    weights = sum(count for count, _ in each) + sum(found.kept.values())
    weights += removed_weights(model.config)
    bits = sum((bits for _, bits in each), float(operators))
    return (bits + found.kept_bits) / weights, found


def _check_artifact(folder: Path, made: Record) -> None:
    """Compare the manifest with the record; quant.load checks the files against the manifest."""
    whole = (folder / "artifact.json").is_file()
    if not whole or artifact_digest(folder) != made.inputs["artifact"]:
        raise StoreError(
            f"the artifact {folder} is not the one that its quantization wrote: delete "
            "that folder and run the same command again to quantize anew."
        )
