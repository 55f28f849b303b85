"""Model cards: the README.md of every artifact and export, made of what was written alone.

A card is for people and for the hub, and its owner may change it, so artifact.json does not list
it. Its last line has the sha256 of the text above: a card that still fits was not changed, and is
made again on export; every other README.md is kept beside the new one (`kept_readmes`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.budget import AnyScheme, Budget
from quant.checkpoint import tables
from quant.checkpoint.files import copyable
from quant.checkpoint.folder import CARD
from quant.checkpoint.formats.base import Format
from quant.checkpoint.one_file import FileFormat
from quant.checkpoint.operators import METHOD as OPERATORS

if TYPE_CHECKING:
    from quant.checkpoint.tensors import Entry

_KEPT = ".source"
_README = re.compile(rf"README((?:\{_KEPT})*)\.md")
_SEAL = re.compile(r"<!-- written by Bitsweep, sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")
_FIGURES, _END = "<!-- figures -->\n", "<!-- end of figures -->\n"
LISTED = 3  # patterns or names in a row; more are counted
_LICENCE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Origin:
    """What is known of a model besides its own files.

    base     its repository on the hub, "OWNER/NAME" (or several); () if it is not known.
    licence  the card's keys license, license_name and license_link, as far as they are known.
    command  lines that make the model again, without paths of this machine; "" if not known.
    figures  what was measured of it, as Markdown; "" if nothing is known.
    """

    base: tuple[str, ...] = ()
    licence: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    figures: str = ""


@dataclass(frozen=True)
class Count:
    """Bytes of the tensors of quantized layers (packed), values and bytes of all other tensors."""

    packed: int = 0
    others: int = 0
    other_bytes: int = 0

    @classmethod
    def of(cls, packed: Iterable[Entry], others: Iterable[Entry]) -> Count:
        """Count the tensors that are to be written."""
        kept = list(others)
        return cls(
            sum(entry.nbytes for entry in packed),
            sum(math.prod(entry.shape) for entry in kept),
            sum(entry.nbytes for entry in kept),
        )

    def __add__(self, other: Count) -> Count:
        return Count(
            self.packed + other.packed,
            self.others + other.others,
            self.other_bytes + other.other_bytes,
        )


@dataclass(frozen=True)
class Content:
    """What was written.

    architecture  class of the model, in transformers.
    method        what made the weights, as config.json says it.
    weights       of the quantized layers, without their biases.
    notes         what readers of the format need, one sentence each.
    scattered     whether act-order has scattered the columns of a group.
    operators     whether layers have operators in front of them (quant.checkpoint.operators), which
                  no reader of the format applies.
    """

    architecture: str
    format: Format | FileFormat
    scheme: AnyScheme
    layers: int
    weights: int
    count: Count
    method: Mapping[str, Any]
    producer: str
    notes: Sequence[str]
    scattered: bool = False
    operators: bool = False

    @property
    def embeddings(self) -> bool:
        """Whether a folder has quantized embeddings, which no reader of its format looks up."""
        return self.scheme.embeddings is not None and not isinstance(self.format, FileFormat)

    @property
    def _alone(self) -> str:
        """What other readers do not know; "" if they read it."""
        words = ["operators in front of layers"] * self.operators
        return " and ".join(words + ["quantized embeddings"] * self.embeddings)

    @property
    def title(self) -> str:
        """Name of the format, as quant.checkpoint.formats.base has it."""
        words = ["input operators"] * self.operators + ["quantized embeddings"] * self.embeddings
        return ", ".join([self.format.title, *words])

    @property
    def library(self) -> str:
        """What loads it, as the hub calls it."""
        return "bitsweep" if self._alone else self.format.library

    @property
    def loading(self) -> list[str]:
        """Who reads it, and what readers need: a sentence first, then a list."""
        inspect = "`bitsweep inspect PATH` says what it holds."
        if self._alone:
            return [f"Read by Bitsweep alone: other tools know no {self._alone}.", inspect]
        return [f"Read by {self.format.readers}.", inspect, *self.notes]


def write_card(folder: Path, content: Content, origin: Origin, kept: Iterable[str] = ()) -> None:
    """Write the card of a folder; kept has the names of other READMEs in it."""
    (folder / CARD).write_text(card(content, origin, kept), encoding="utf-8")


def card(content: Content, origin: Origin, kept: Iterable[str] = ()) -> str:
    """Return the text of a card: metadata in YAML, then what people want to know."""
    scheme = content.scheme
    title = f"# {content.architecture}, {scheme.name}, {content.title}\n"
    bases = ", ".join(f"[{each}](https://huggingface.co/{each})" for each in origin.base)
    what = f"{bases or 'A model'} with {content.layers} quantized linear layers.\n"
    rows = {
        "method": _method(content.method),
        "calibration": _calibration(content.method),
        "scheme": _scheme(scheme.without_head, content.scattered),
        **_of_layers(scheme),
        **{what: _scheme(own, False) for what, own in scheme.outside.items()},
        "bits per weight": _bits(content.weights, content.count),
        "format": content.title,
        "written by": content.producer,
    }
    table = "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    readers, *needs = content.loading
    loading = f"{readers}\n" + "".join(f"\n- {note}" for note in needs)
    parts = [
        _metadata(content, origin),
        title,
        what,
        table,
        _figures(origin.figures),
        f"## How to load it\n\n{loading.rstrip()}\n",
    ]
    if origin.command:
        parts.append(f"## How to make it again\n\n```bash\n{origin.command}\n```\n")
    others = [f"[{name}]({name})" for name in kept]
    if others:
        parts.append(f"The checkpoint it was exported from came with {', '.join(others)}.\n")
    return _sealed("\n".join(parts))


def add_figures(folder: Path, figures: str) -> bool:
    """Put measured figures (Markdown) into the card of a folder; whether the card has them now.

    A card that its owner changed, or that is not there, stays as it is.
    """
    text = _read(folder)
    if not is_sealed(text):
        return False
    begin, end = text.index(_FIGURES), text.index(_END) + len(_END)
    changed = _sealed(text[:begin] + _figures(figures) + _SEAL.sub("", text[end:]))
    if changed != text:
        new = folder / f".{CARD}.new"  # a card that was cut short would be taken for a changed one
        new.write_text(changed, encoding="utf-8")
        new.replace(folder / CARD)
    return True


def origin_of(folder: Path, base: str | None = None, command: str = "") -> Origin:
    """Return what is known of a model that is made from the full-precision one in `folder`.

    base  the full-precision model on the hub. The licence is that of the folder's README.md.
    """
    licence = _licence(_metadata_of(_read(folder)))
    return Origin(() if base is None else (base,), licence, command)


def origin_of_export(source: Path, command: str) -> Origin:
    """Return what the README.md of a quantized checkpoint says of base, licence and figures.

    Figures are those of a card of Bitsweep's alone: the export's weights are the same. command is
    that of the export; that of a card of Bitsweep's comes first.
    """
    text = _read(source)
    data = _metadata_of(text)
    base = data.get("base_model") or ()
    found = Origin(
        (base,) if isinstance(base, str) else tuple(map(str, base)), _licence(data), command
    )
    if not is_sealed(text):
        return found
    figures = text.partition(_FIGURES)[2].partition(_END)[0].removeprefix("\n## Figures\n\n")
    before = re.search(r"^```bash\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    commands = ([before[1]] if before else []) + [command]
    return replace(found, command="\n".join(commands), figures=figures.strip())


def kept_readmes(source: Path) -> dict[str, Path]:
    """Return the READMEs of a folder that are copied on export: new name to path.

    README.md becomes README.source.md, and that README.source.source.md, unless README.md is a card
    that nobody has changed, which the new card replaces. ArtifactError for links to elsewhere.
    """
    replaced = is_sealed(_read(source))
    found = {}
    names = [path.name for path in source.glob("README*.md") if _README.fullmatch(path.name)]
    for path in copyable(source, names):
        if not replaced:
            found[path.name.removesuffix(".md") + f"{_KEPT}.md"] = path
        elif path.name != CARD:
            found[path.name] = path
    return found


def is_sealed(text: str) -> bool:
    """Whether a text is a card that Bitsweep wrote and nobody has changed."""
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def _sealed(text: str) -> str:
    above = f"{text.rstrip()}\n\n"
    return f"{above}<!-- written by Bitsweep, sha256 of the text above: {_digest(above)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(folder: Path) -> str:
    """Return the README.md of a folder; "" if there is none that is text."""
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _metadata(content: Content, origin: Origin) -> str:
    from huggingface_hub import ModelCardData

    base: Any = origin.base[0] if len(origin.base) == 1 else list(origin.base)
    relation = {"base_model": base, "base_model_relation": "quantized"} if origin.base else {}
    name = str(content.method.get("name", "unknown"))
    method = tables.METHOD if content.embeddings else content.format.quant_method
    method = OPERATORS if content.operators else method
    tags = ["bitsweep", method, name]
    data = ModelCardData(
        library_name=content.library,
        pipeline_tag="text-generation",
        tags=[tag for tag in dict.fromkeys(tags) if tag and tag != "unknown"],
    )
    for key, value in {**relation, **origin.licence}.items():
        setattr(data, key, value)
    return f"---\n{data.to_yaml().rstrip()}\n---\n"


def _metadata_of(text: str) -> dict[str, Any]:
    """Return the YAML metadata of a README.md; {} if it has none or cannot be read."""
    from huggingface_hub import ModelCard

    if not text.lstrip().startswith("---"):
        return {}  # which the library would warn of
    try:
        data: Any = ModelCard(text, ignore_metadata_errors=True).data
        found: dict[str, Any] = data.to_dict()
    except Exception:  # of the YAML, or of what is no mapping
        return {}
    return found


def _licence(data: Mapping[str, Any]) -> dict[str, str]:
    return {key: data[key] for key in _LICENCE if isinstance(data.get(key), str)}


def _figures(figures: str) -> str:
    inside = f"\n## Figures\n\n{figures.strip()}\n\n" if figures else ""
    return f"{_FIGURES}{inside}{_END}"


def _method(method: Mapping[str, Any]) -> str:
    named = {key: value for key, value in method.items() if key not in ("name", "calib")}
    said = _pairs(named)
    return f"{method.get('name', 'unknown')}{f': {said}' if said else ''}"


def _calibration(method: Mapping[str, Any]) -> str:
    calib = method.get("calib")
    if not isinstance(calib, Mapping):
        return "none" if "calib" in method else "not said"
    return _pairs(calib)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value, sort_keys=True)}"
        for key, value in sorted(values.items())
        if value not in (None, [], {})
    ).replace("|", "\\|")


def _scheme(scheme: AnyScheme, scattered: bool) -> str:
    if isinstance(scheme, Budget):
        return f"{scheme.name}: at most {scheme.bits:.10g} bits for a weight, float16 factors"
    size = scheme.group_size
    words = [
        f"{scheme.bits} bits",
        "per row" if size is None else f"groups of {size}",
        "symmetric" if scheme.symmetric else "asymmetric",
        f"{scheme.kind.name} levels",
        f"{scheme.grid} grid",
        *([f"{scheme.scale_dtype} scales"] if scheme.kind.scaled else []),
        *(["groups scattered by act-order"] if scattered else []),
    ]
    return f"{scheme.name}: {', '.join(words)}"


def _of_layers(scheme: AnyScheme) -> dict[str, str]:
    """The row of the layers that have another scheme: how many, or the patterns of their names."""
    named: dict[str, list[str]] = {}
    for layer, each in scheme.layers:
        named.setdefault(each.name, []).append(f"`{layer}`")
    said = [
        f"{name}: {', '.join(layers) if len(layers) <= LISTED else f'{len(layers)} layers'}"
        for name, layers in named.items()
    ]
    return {"other layers": "; ".join(said)} if said else {}


def _bits(weights: int, count: Count) -> str:
    layers = 8 * count.packed / weights
    whole = 8 * (count.packed + count.other_bytes) / (weights + count.others)
    return (
        f"{layers:.3f} of the {weights:,} weights of quantized layers, every tensor of them "
        f"counted (codes, scales, zero-points, indices); {whole:.3f} of all tensors"
    )
