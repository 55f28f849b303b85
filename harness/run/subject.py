"""The model under test of a cell: where it comes from, and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cell.keys import QUANTIZATION, kernel_of
from harness.cell.plan import CellPlan
from harness.cell.validation import make_scheme
from harness.errors import StoreError
from harness.models import dummy
from harness.models.checkpoints import (
    bits_per_weight,
    find_checkpoint,
    load_checkpoint,
    load_dequantized,
    load_packed,
    packed_shapes,
)
from harness.models.folders import load_model, load_tokenizer, model_folder
from harness.models.streaming import open_packed, open_source, streams
from harness.records.record import Record
from harness.records.store import artifact_digest

if TYPE_CHECKING:
    from quant.checkpoint.source import ArtifactSource, CheckpointSource


class Subject:
    """The model under test and its tokenizer, loaded when the first suite asks for them."""

    def __init__(self, plan: CellPlan) -> None:
        self._plan = plan
        self._model: Any = None
        self._streams: bool | None = None
        self._tokenizer: Any = None
        self.inputs: dict[str, str] = {}
        self.bits_per_weight: float | None = None
        self.kernel = kernel_of(plan.config)
        self._checkpoint = find_checkpoint(plan.config.model)
        self.loaded = self._checkpoint is not None
        self.quantized = self.loaded or plan.config.method.name != "none"
        # The packed weights that are measured, made here or elsewhere; None: full precision, dummy.
        self.packed = model_folder(plan.config.model) if self.loaded else plan.artifact

    def model(self) -> Any:
        """The model under test, whole."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def streams(self) -> bool:
        """Whether the model is measured block by block; decided once, before anything is loaded."""
        if self._streams is None:
            self._streams = (
                self._model is None
                and not dummy.is_dummy(self._plan.config.model)
                and streams(self._plan.config, self.packed)
            )
        return self._streams

    def open(self) -> CheckpointSource | ArtifactSource:
        """The model under test as a source of blocks, a context manager."""
        self.check()
        if self.packed is None:
            return open_source(self._plan.config)
        source = open_packed(self._plan.config, self.packed)
        if self._checkpoint is not None:
            shapes = source.layer_shapes().values()
            self.bits_per_weight = bits_per_weight(self._checkpoint.scheme, shapes)
        return source

    def tokenizer(self) -> Any:
        """The tokenizer, None for a dummy."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._plan.config.model)
        return self._tokenizer

    def plain(self) -> Any:
        """The full-precision model that the cell started from."""
        config = self._plan.config
        if dummy.is_dummy(config.model):
            return dummy.load(config, packed=False)
        return load_model(config.model, config.runtime.device)

    def twin(self) -> Any:
        """The full-precision model to compare with; the model itself where there is none."""
        if self.loaded:
            return load_dequantized(self._plan.config)
        return self.plain() if self.quantized else self.model()

    def reference(self) -> Any:
        """The quantized model from the same files, dequantized by the reference kernel."""
        if self.loaded:
            return load_checkpoint(self._plan.config, "reference")
        if self._plan.artifact is None:
            raise ValueError(f"{self._plan.identity.method} leaves no artifact to load again.")
        return self._quantized("reference")

    def _load(self) -> Any:
        config = self._plan.config
        if self._checkpoint is not None:
            model = load_checkpoint(config, config.runtime.kernel)
            self.bits_per_weight = bits_per_weight(self._checkpoint.scheme, packed_shapes(model))
            return model
        if self._plan.artifact is not None:
            return self._quantized(config.runtime.kernel)
        if config.method.name != dummy.RANDOM:
            return self.plain()
        model, scheme = dummy.load(config, packed=True), make_scheme(config.scheme)
        assert scheme is not None  # method=random with w16 is refused
        self.bits_per_weight = bits_per_weight(scheme, packed_shapes(model))
        return model

    def check(self) -> None:
        """Hold the artifact, if there is one, against the record of its making."""
        folder = self._plan.artifact
        if folder is None:
            return
        made = self._plan.find(QUANTIZATION)
        assert made is not None
        _check_artifact(folder, made)
        self.inputs = {"artifact": made.inputs["artifact"]}
        self.bits_per_weight = made.cell.bits_per_weight

    def _quantized(self, kernel: str) -> Any:
        assert self._plan.artifact is not None
        self.check()
        return load_packed(self._plan.config, self._plan.artifact, kernel)


def _check_artifact(folder: Path, made: Record) -> None:
    """What is measured is what was made; quant.load checks every file against the manifest."""
    whole = (folder / "artifact.json").is_file()
    if not whole or artifact_digest(folder) != made.inputs["artifact"]:
        raise StoreError(
            f"the artifact {folder} is not the one that was written when it was quantized: delete "
            "that folder and run the same command again to quantize anew."
        )
