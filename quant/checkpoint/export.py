"""Export a quantized checkpoint to another format, layer by layer, with identical weights."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from quant.checkpoint.card import (
    Content,
    Count,
    kept_readmes,
    origin_of_export,
    write_card,
)
from quant.checkpoint.choose import exported_format, writer_in, writer_of, written
from quant.checkpoint.export_file import refuse_target, write_file
from quant.checkpoint.files import TOKENIZER_FILES, copy_files, copyable
from quant.checkpoint.folder import MANIFEST, read_json, recover, remake, replace_folder
from quant.checkpoint.formats.base import CheckpointFormat, Format, StoredLayer, Writer
from quant.checkpoint.layers import quantized_layers, read_weight, scheme_of, whole_scheme
from quant.checkpoint.loader import read_format, read_quantization, refuse_unexpected
from quant.checkpoint.matching import say_untied, ties_hold, untie_as_stored
from quant.checkpoint.names import names_of
from quant.checkpoint.one_file import FileFormat, WholeLayer, WholeModel
from quant.checkpoint.operators import summary
from quant.checkpoint.skeleton import build_skeleton
from quant.checkpoint.tensors import Entry, TensorReader, write_tensors
from quant.checkpoint.writer import (
    MAX_SHARD_BYTES,
    SLACK_BYTES,
    as_stored,
    describe,
    kind_of,
    layer_entries,
    layer_shape,
    own_code,
    producer,
)
from quant.errors import ArtifactError
from quant.head import is_embeddings, is_head
from quant.levels.base import Levels
from quant.parts import Part
from quant.pruning.cut import smaller_layers
from quant.scheme import Scheme, mixture
from quant.weight import AnyWeight, QuantizedWeight


@dataclass(frozen=True)
class Exported:
    """The result of an export; notes are limitations of the format's readers, one sentence each.

    folder  what was written; the file, for a format that is one.
    """

    folder: Path
    layers: int
    notes: tuple[str, ...]


def export(
    source: str | Path,
    target: str | Path,
    format: str,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    verify_files: bool = True,
    levels: Sequence[str | Part | Levels] = (),
    trust_remote_code: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> Exported:
    """Write the checkpoint in `source` to the folder or file `target` in the format with that name.

    format is one of quant.checkpoint.choose.exported. source is any checkpoint that `load` reads,
    from any producer; levels has the same meaning as there. Codes and zero-points do not change.
    Scales do not change either, except that compressed-tensors stores them in the dtype of the
    model if that is exact (its readers compute with scales of that dtype). All other tensors, the
    tokenizer and generation_config.json are copied. README.md is a model card, and the source's own
    is kept beside it (quant.checkpoint.card). The folder appears complete or not at all, with the
    sha256 of every other file in artifact.json. One layer and one shard are in memory at a time.
    overwrite=True replaces a model that Bitsweep wrote to `target`, once the new one is complete.
    trust_remote_code=True runs the model's own Python files and copies them; a model with its own
    code cannot be exported without it. on_note is called with each of the result's notes before
    anything is written.

    Raises ArtifactError for an unknown format, a target that is not empty, a source that cannot be
    read, and for layers that the format cannot store (its `refuses` and `write_layer` say why).
    """
    source, target = Path(source), Path(target)
    kind = exported_format(format)
    if target.exists() and source.exists() and target.samefile(source):
        raise ArtifactError(f"{target} is the checkpoint itself; write the export elsewhere.")
    if isinstance(kind, FileFormat):
        refuse_target(kind, target, overwrite)
    elif not overwrite:
        _refuse_overwriting(target)
    checkpoint = read_format(source, verify_files=verify_files, levels=levels)
    if checkpoint.operators:
        raise ArtifactError(
            f"{source} has {summary(checkpoint.operators)}, and {format} stores only weights: "
            "quantize again with folded changes (keep=never for Bitsweep's transforms)."
        )
    if checkpoint.embeddings and not isinstance(kind, FileFormat):
        raise ArtifactError(
            f"{source} has quantized embeddings, which readers of {format} do not look up: use "
            "--format gguf where its types hold their grid, or quantize again without "
            "scheme.embeddings."
        )
    if checkpoint.budget is not None:
        raise ArtifactError(
            f"{source} has factored weights, which {format} cannot store: only Bitsweep's own "
            "artifact does. Quantize with a scheme such as w4g64 to export."
        )
    spec = kind if isinstance(kind, FileFormat) else writer_in(kind)
    reason = spec.refuses(checkpoint.scheme(checkpoint.scale_dtype), None)
    if reason is not None:
        raise ArtifactError(f"{source} {reason}")
    with TensorReader(source) as reader:
        model = build_skeleton(source, None, {"trust_remote_code": trust_remote_code})
        if smaller_layers(model.config):
            raise ArtifactError(
                f"{source} has layers that are smaller than config.json says (pruned), which other "
                "programs do not know: export a model without whole blocks "
                "(transform=[block_removal]), or keep this artifact."
            )
        names = names_of(model)
        reader.rename(names.to_model)
        layers = _layers(reader, checkpoint, model)
        scheme = whole_scheme(reader, checkpoint, [layer.stored.name for layer in layers])
        assert isinstance(scheme, Scheme)  # factored weights were refused
        if checkpoint.mixture:
            _refuse_mixed(source, checkpoint, kind)
            inside = {each.stored.name: each.scheme for each in layers}
            own = {n: s for n, s in inside.items() if not is_head(n) and not is_embeddings(n)}
            scheme = mixture(own).beside(scheme.outside)
        untie_as_stored(model, reader.names, reader.mapped)
        replaced = tuple(f"{layer.stored.name}." for layer in layers)
        _refuse_left_out(reader, checkpoint, model, replaced)
        others = [_copied(reader, name) for name in reader.names if not name.startswith(replaced)]
        others += [_copied(reader, name) for name in _biases(reader, layers, model)]
        method = _method(read_quantization(source), checkpoint)
        out = f"OUT{kind.suffix}" if isinstance(kind, FileFormat) else "OUT"
        origin = origin_of_export(source, f"bitsweep export ARTIFACT {out} --format {format}")
        if isinstance(kind, FileFormat):
            whole = WholeModel(
                source=source,
                config=model.config.to_dict(),
                scheme=scheme,
                layers={layer.stored.name: layer for layer in layers},
                others={entry.name: entry for entry in _untied(others, layers, model)},
                scattered=checkpoint.act_order,
                method=method,
                producer=producer(),
                base=origin.base,
                licence=origin.licence.get("license"),
            )
            notes = write_file(kind, target, whole, type(model).__name__, origin, on_note)
            return Exported(target, len(layers), notes)
        writer = writer_in(kind)
        packed = [
            entry
            for layer in layers
            for entry in layer_entries(
                writer_of(writer, layer.scheme), layer.scheme, layer.stored, layer.read
            )
        ]
        entries = as_stored(packed + others, names)
        config = _config(source, writer, checkpoint, scheme, layers, model, method)
        files = copyable(source, (*TOKENIZER_FILES, "generation_config.json"))
        files += own_code(model)
        readmes = kept_readmes(source)
        needed = sum(entry.nbytes for entry in entries) + SLACK_BYTES
        needed += sum(path.stat().st_size for path in (*files, *readmes.values()))
        notes = tuple(writer.notes(scheme, [layer.stored for layer in layers]))
        if on_note is not None:
            for note in notes:
                on_note(note)
        with replace_folder(target, needed) as partial:
            write_tensors(partial, entries, max_shard_bytes, writer.stem)
            (partial / "config.json").write_text(config, encoding="utf-8")
            copy_files(files, partial)
            for name, path in readmes.items():
                shutil.copyfile(path, partial / name)
            content = Content(
                architecture=type(model).__name__,
                format=kind,
                scheme=scheme,
                layers=len(layers),
                weights=sum(each.stored.outputs * each.stored.inputs for each in layers),
                count=Count.of(packed, others),
                method=method,
                producer=producer(),
                notes=notes,
                scattered=checkpoint.act_order,
            )
            write_card(partial, content, origin, readmes)
    return Exported(target, len(layers), notes)


def _refuse_mixed(source: Path, checkpoint: CheckpointFormat, kind: Format | FileFormat) -> None:
    if not (isinstance(kind, FileFormat) or writer_in(kind).mixes):
        can = [name for name, (_, writer) in written().items() if writer.mixes]
        raise ArtifactError(
            f"{source} has layers of several schemes ({checkpoint.mixture}), and {kind.name} has "
            f"one for all: use --format {' or '.join(can)}, or quantize with a single scheme."
        )


def _refuse_overwriting(target: Path) -> None:
    """Raise ArtifactError that names the model at target; other contents are never replaced."""
    recover(target.absolute())  # a killed writer may have moved the model aside
    if not (target / MANIFEST).is_file():
        return
    try:
        found = read_format(target, verify_files=False)
        what = f"a quantized model ({found.name}, {found.bits} bits, by {found.producer})"
    except ArtifactError:
        what = f"an artifact of Bitsweep ({MANIFEST}) that cannot be read"
    raise ArtifactError(
        f"{target} already contains {what}, which is not overwritten by default: choose another "
        "folder, or add --overwrite (in Python overwrite=True) to replace it."
    )


def _layers(
    reader: TensorReader, checkpoint: CheckpointFormat, model: PreTrainedModel
) -> list[WholeLayer]:
    """Return the quantized layers, with the shapes that the model gives them."""
    found = []
    for name, parts in quantized_layers(reader, checkpoint).items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ArtifactError(
                f"{reader.folder} has a quantized layer {name}, but {type(model).__name__} has "
                f"no such layer. {remake(reader.folder)}"
            ) from error
        shape = layer_shape(module, name)
        read = functools.partial(read_weight, reader, checkpoint, name, parts, shape)
        if checkpoint.of(name).format.scales not in (None, *parts):
            read()  # its error says what is missing
        scheme = scheme_of(reader, checkpoint, name)
        assert isinstance(scheme, Scheme)  # factored weights were refused
        stored = StoredLayer(name, *shape, module=kind_of(module), dtype=model.dtype)
        found.append(WholeLayer(scheme, stored, functools.partial(_of_scheme, read, scheme, name)))
    return found


def _of_scheme(read: Callable[[], AnyWeight], scheme: Scheme, name: str) -> QuantizedWeight:
    """Read a layer; ArtifactError if its own scheme is not that of the checkpoint."""
    weight = read()
    assert isinstance(weight, QuantizedWeight)
    if weight.scheme != scheme:
        raise ArtifactError(
            f"{name} is {weight.scheme.name} and the checkpoint {scheme.name}, because the layer's "
            f"{weight.shape[1]} inputs are no whole number of blocks: an export has one scheme, so "
            "it cannot be exported."
        )
    return weight


def _refuse_left_out(
    reader: TensorReader,
    checkpoint: CheckpointFormat,
    model: PreTrainedModel,
    layers: tuple[str, ...],
) -> None:
    """Raise ArtifactError, as loading does, for tensors of layers that would not be read."""
    known = {
        layer + part
        for layer in layers
        for part in (*checkpoint.of(layer.removesuffix(".")).parts, "bias")
    }
    used = {name for name in reader.names if name in known or not name.startswith(layers)}
    refuse_unexpected(model, reader, used)


def _untied(others: list[Entry], layers: list[WholeLayer], model: PreTrainedModel) -> list[Entry]:
    """Return the tensors without the copies of tied ones that some files have."""
    if not ties_hold(model, [layer.stored.name for layer in layers]):
        return others
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return [entry for entry in others if entry.name not in tied]


def _copied(reader: TensorReader, name: str) -> Entry:
    tensor = reader.mapped(name)
    return Entry(name, tuple(tensor.shape), tensor.dtype, functools.partial(reader.mapped, name))


def _biases(reader: TensorReader, layers: list[WholeLayer], model: PreTrainedModel) -> list[str]:
    """Return the names of those biases of the quantized layers that the model has.

    AutoGPTQ stores a bias for every layer, zeros if the model has none; readers would ignore those.
    """
    names = []
    for name in (f"{layer.stored.name}.bias" for layer in layers):
        if name not in reader.names:
            continue
        if getattr(model.get_submodule(name.removesuffix(".bias")), "bias", None) is not None:
            names.append(name)
        elif bool(reader.mapped(name).any()):
            raise ArtifactError(
                f"{reader.file_of(name)}: {name} is not zero, but {type(model).__name__} has no "
                f"bias there, so readers would ignore it. {remake(reader.folder)}"
            )
    return names


def _config(
    source: Path,
    writer: Writer,
    checkpoint: CheckpointFormat,
    scheme: Scheme,
    layers: list[WholeLayer],
    model: PreTrainedModel,
    method: Mapping[str, Any],
) -> str:
    """Return the source's config.json with another quantization_config."""
    config = read_json(source / "config.json")
    names = [layer.stored.name for layer in layers]
    if not ties_hold(model, names):
        say_untied(config)
    config["quantization_config"] = describe(
        writer, model, names, scheme, checkpoint.act_order, method
    )
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _method(quantization: Mapping[str, Any], checkpoint: CheckpointFormat) -> dict[str, Any]:
    """Return the method that the source names; for other producers their name."""
    meta = quantization.get("meta")
    said = meta.get("method") if isinstance(meta, Mapping) else None
    if isinstance(said, Mapping):
        return dict(said)
    return {"name": "unknown", "source": f"{checkpoint.name}, {checkpoint.producer or 'unnamed'}"}
