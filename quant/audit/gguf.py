"""Read a GGUF file beside its base: its layers one at a time, by the names of the base.

Rows of queries and keys that llama.cpp's converter reordered are put back in order, codes and grids
alike. The file is read in parts and not mapped: touched pages would count as memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.audit.checkpoint import LISTED, Claim, Loose, share_differing
from quant.checkpoint.gguf.architecture import Placed
from quant.checkpoint.gguf.codes import BadBlock, has_grid, read_codes
from quant.checkpoint.gguf.config import config as read_config
from quant.checkpoint.gguf.families import architecture
from quant.checkpoint.gguf.file import FLOATS, GgufFile, read_gguf
from quant.checkpoint.gguf.place import place
from quant.checkpoint.skeleton import build_causal_lm
from quant.checkpoint.tensors import TensorReader
from quant.errors import ArtifactError
from quant.weight import QuantizedWeight

IMATRIX = "quantize.imatrix."
_METHOD, _PRODUCER = "bitsweep.method", "general.quantized_by"
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
BESIDE_1 = 2**-23  # rounding of float32: norms of Gemma are stored with the 1 that it adds
_ROWS = 4096  # of a matrix outside the blocks that are compared at a time
_SHOWN = 60  # letters of a text in the metadata

CODEBOOK = "chooses several weights at once from a codebook"


class AuditedGguf:
    """The layers of a GGUF file; a context manager with the interface of AuditedCheckpoint.

    Raises ArtifactError for a file that cannot be read, and for tensors that the base has not, or
    in another shape.
    """

    def __init__(self, path: str | Path, base: PreTrainedModel) -> None:
        self.folder = Path(path)
        self._file, self._placed = _read(self.folder)
        _require_same_model(self._file, self._placed, base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def claim(self) -> Claim:
        """What the metadata says; a type of tensors says nothing of the method that chose codes."""
        said, kinds = self._file.metadata, self._file.weights_by_kind()
        shares = {kind: count / sum(kinds.values()) for kind, count in kinds.items()}
        types = [f"{kind} {share:.0%}" for kind, share in shares.items() if kind not in FLOATS]
        return Claim(
            _method(said),
            str(said.get(_PRODUCER) or ""),
            "GGUF",
            types=", ".join(types),
            said=_imatrix(said),
        )

    def read(self, layer: str) -> QuantizedWeight | Loose | None:
        """Return the weight of a layer, by its full name; None if its values are stored."""
        placed = self._placed[f"{layer}.weight"]
        stored = self._file.tensors[placed.stored]
        if stored.kind in FLOATS:
            return None
        if not has_grid(stored.kind):
            values = self._values(placed)
            bits = 8.0 * stored.nbytes * len(values) / stored.shape[0]
            return Loose(values, stored.kind, bits, CODEBOOK)
        try:
            weight = read_codes(stored.kind, self._bytes(placed), stored.shape[-1])
        except BadBlock as error:
            raise ArtifactError(
                f"{self.folder}: {stored.name} ({stored.kind}) {error}: the file is damaged; "
                "download it again."
            ) from error
        if placed.change is None:
            return weight
        order = placed.change(torch.arange(len(weight.codes)))
        grid = {name: part[order] for name, part in weight.grid.items()}
        return QuantizedWeight(weight.codes[order], weight.scheme, None, grid)

    def type_of(self, layer: str, weight: QuantizedWeight) -> str:  # noqa: ARG002
        """Return the type of a quantized layer in the file, such as "Q4_K"."""
        return self._file.tensors[self._placed[f"{layer}.weight"].stored].kind

    def stored_bits(self, layer: str, weight: QuantizedWeight) -> float:
        """Return the bits that the file holds of a quantized layer."""
        stored = self._file.tensors[self._placed[f"{layer}.weight"].stored]
        return 8.0 * stored.nbytes * weight.shape[0] / stored.shape[0]

    def dense(self, layer: str) -> Tensor:
        """Return the weight of a layer that is not quantized, in float32."""
        return self._values(self._placed[f"{layer}.weight"])

    def differing(self, base: TensorReader) -> Iterator[tuple[str, float]]:
        """Yield the other tensors that are no linear layers' and not quantized, as far as they
        differ from the base's, with the share of their values.
        """
        for name, placed in self._outside(base):
            if self._file.tensors[placed.stored].kind in FLOATS:
                share = share_differing(self._values(placed), base.mapped(name), BESIDE_1)
                if share:
                    yield name, share

    def outside(self, base: TensorReader) -> Iterator[str]:
        """Yield what quantized tensors outside the blocks (embedding, head) differ from the base's.

        Each in words, with ||W - Q||_F / ||W||_F.
        """
        for name, placed in self._outside(base):
            stored = self._file.tensors[placed.stored]
            if stored.kind in FLOATS:
                continue
            apart = size = 0.0
            whole = base.mapped(name)
            for first in range(0, len(whole), _ROWS):
                piece = whole[first : first + _ROWS].float()
                values = self._values(placed, (first, min(first + _ROWS, len(whole))))
                apart += float((piece - values).square().sum(dtype=torch.float64))
                size += float(piece.square().sum(dtype=torch.float64))
            error = (apart / size) ** 0.5 if size else 0.0
            yield f"{name} is {stored.kind} and {100 * error:.2g} % from the base's"

    def _outside(self, base: TensorReader) -> Iterator[tuple[str, Placed]]:
        """Yield the tensors, by the base's names, that are not the weights of linear layers."""
        held = set(base.names)
        for name, placed in self._placed.items():
            matrix = len(placed.shape) > 1 and name not in _VOCABULARY
            if name in held and not matrix:
                yield name, placed

    def _values(self, placed: Placed, rows: tuple[int, int] | None = None) -> Tensor:
        """Return values as the base has them; `rows` only of tensors that are not changed."""
        values = self._file.tensors[placed.stored].values_of(self._bytes(placed, rows))
        return values if placed.change is None else placed.change(values)

    def _bytes(self, placed: Placed, rows: tuple[int, int] | None = None) -> Tensor:
        """Return what the file holds of a tensor, uint8 [rows, bytes of a row]."""
        stored = self._file.tensors[placed.stored]
        first, last = rows or placed.rows or (0, stored.shape[0])
        size = stored.nbytes // stored.shape[0]
        with self.folder.open("rb") as stream:
            stream.seek(int(stored.raw.data_offset) + first * size)
            held = bytearray(stream.read((last - first) * size))
        return torch.frombuffer(held, dtype=torch.uint8).view(last - first, size)


def check_pair(path: Path, base: Path) -> None:
    """Raise ArtifactError unless a GGUF file is of the model in the folder `base`.

    Reads the metadata of the one and the config.json of the other, and no weights.
    """
    advice = "Name the folder of the model that the file was made from."
    model = build_causal_lm(base, torch.float32, {"trust_remote_code": False}, advice)
    _require_same_model(*_read(path), model)


def _read(path: Path) -> tuple[GgufFile, dict[str, Placed]]:
    file = read_gguf(path)
    how = architecture(file)
    return file, place(file, how, read_config(file, how))


def _require_same_model(
    file: GgufFile, placed: Mapping[str, Placed], base: PreTrainedModel
) -> None:
    held = {name: tuple(each.shape) for name, each in base.state_dict().items()}
    kind = type(base).__name__
    advice = "name the model that it was made from with --base."
    for name, each in placed.items():
        if name not in held:
            raise ArtifactError(
                f"{file.path} has the tensor {each.stored} ({name}), which {kind} of the base does "
                f"not have: it is a {file.architecture}; {advice}"
            )
        if held[name] != each.shape:
            what = "another vocabulary" if name in _VOCABULARY else "another model"
            raise ArtifactError(
                f"{file.path} has {each.stored} of shape {list(each.shape)}, and {name} of the "
                f"base has {list(held[name])}: it is of {what}; {advice}"
            )
    tied = {"lm_head.weight"} if getattr(base.config, "tie_word_embeddings", False) else set()
    lacking = [name for name in held if name not in placed and name not in tied]
    if lacking:
        more = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
        raise ArtifactError(
            f"{file.path} ({file.architecture}) has nothing for {', '.join(lacking[:LISTED])}{more}"
            f", which {kind} of the base has: {advice}"
        )


def _method(said: Mapping[str, Any]) -> str | None:
    """The method that Bitsweep noted in a file of its own."""
    try:
        noted: Any = json.loads(said.get(_METHOD, "null"))
    except (TypeError, ValueError):
        return None
    for key in ("method", "name"):
        noted = noted.get(key) if isinstance(noted, Mapping) else None
    return str(noted).lower() if noted else None


def _imatrix(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The file's note that its grids were chosen with an importance matrix, in words."""
    found = {key: said[f"{IMATRIX}{key}"] for key in ("file", "dataset", "chunks_count")
             if f"{IMATRIX}{key}" in said}  # fmt: skip
    if not found:
        return ()
    words = {"file": "file", "dataset": "text", "chunks_count": "chunks"}
    parts = ", ".join(f"{words[key]} {str(value)[:_SHOWN]}" for key, value in found.items())
    return (f"the file says that an importance matrix weighted the choice of grids ({parts})",)
