"""All architectures that are read from GGUF, by the names that llama.cpp gives them."""

from __future__ import annotations

from quant.checkpoint.gguf import gemma, llama, phi, qwen
from quant.checkpoint.gguf.architecture import Architecture
from quant.checkpoint.gguf.file import GgufFile
from quant.errors import ArtifactError

ARCHITECTURES: dict[str, Architecture] = {
    each.name: each for module in (llama, qwen, gemma, phi) for each in module.ARCHITECTURES
}
_MODEL = "model"
_PARTS = "split.count"


def architecture(file: GgufFile) -> Architecture:
    """How to read this file; ArtifactError unless it is a whole model of a known architecture."""
    kind = file.metadata.get("general.type", _MODEL)
    if kind != _MODEL:
        raise ArtifactError(
            f"{file.path} is no model but a GGUF file of type {kind}: name the file of the model."
        )
    if file.metadata.get(_PARTS, 0) > 1:
        raise ArtifactError(
            f"{file.path} is one of {file.metadata[_PARTS]} parts of a model, which are not read "
            "one by one: join them with `llama-gguf-split --merge` of llama.cpp."
        )
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        raise ArtifactError(
            f"{file.path} has the architecture {file.architecture or 'without a name'}, and only "
            f"{', '.join(ARCHITECTURES)} are read from GGUF: use the Hugging Face folder of the "
            "model (model=hub or model=local)."
        )
    return found
