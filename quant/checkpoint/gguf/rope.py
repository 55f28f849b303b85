"""Rotary positions: `rope.*` keys and tensors of factors, as config.json says them.

llama.cpp takes a file with a factor and no type for scaled linearly, and one of type "none" for not
scaled, whatever factor it has. The factors of Llama 3.1 are no keys but a tensor; what
transformers calls llama3 is found again if it gives these factors, otherwise they are written down
one by one ("longrope" with the same factors for short and long texts is just that).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quant.checkpoint.gguf.architecture import Config
from quant.checkpoint.gguf.file import GgufFile
from quant.errors import ArtifactError

_BASE, _ROTATED = "rope.freq_base", "rope.dimension_count"
_TYPE, _FACTOR, _OLD_FACTOR = "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"
_ORIGINAL, _ATTENTION = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
_FAST, _SLOW = "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"
# Keys with the only value that is read.
_FIXED = {
    "rope.scaling.alpha": 0.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
}
ROPE_KEYS = frozenset(
    {_BASE, _ROTATED, _TYPE, _FACTOR, _OLD_FACTOR, _ORIGINAL, _ATTENTION, _FAST, _SLOW}
    | {"rope.scaling.finetuned", *_FIXED}
)
FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (FREQUENCIES, LONG, SHORT)  # tensors that are read here and placed nowhere
_WRITTEN = ("default", "llama3")
_TYPES = ("none", "linear", "yarn", "longrope")
_CLOSE = 1e-5


def positions(file: GgufFile, config: Config, *, partial: bool) -> Config:
    """Fields of config.json about rotary positions.

    config has the sizes of the model; partial says whether less than a head may be rotated. Raises
    ArtifactError for what is not read.
    """
    name = file.architecture
    base = file.real(f"{name}.{_BASE}", 10000.0)
    found: Config = {"rope_theta": base}
    head = config["head_dim"]
    rotated = file.number(f"{name}.{_ROTATED}", head)
    if rotated != head and (not partial or rotated > head or rotated % 2):
        raise ArtifactError(
            f"{file.path} rotates {rotated} of the {head} dimensions of a head, which is not "
            "read: use the Hugging Face folder of the model."
        )
    if partial:
        found["partial_rotary_factor"] = rotated / head
    for key, only in _FIXED.items():
        if (value := file.real(f"{name}.{key}", only)) != only:
            raise _unread(file, key, value)
    scaling = _scaling(file, config, base, rotated)
    return found if scaling is None else {**found, "rope_scaling": scaling}


def rope_keys(rope: Config, head: int, partial: bool) -> dict[str, object]:
    """Return the keys of rotary positions for writing, without the name of the architecture.

    rope is rope_parameters of config.json; llama3 is in a tensor beside (`FREQUENCIES`). partial
    says whether less than a head may be rotated. Raises ArtifactError for positions that are not
    written.
    """
    kind = rope.get("rope_type", "default")
    rotated = int(head * rope.get("partial_rotary_factor", 1.0)) if partial else head
    found: dict[str, object] = {_BASE: float(rope.get("rope_theta", 10000.0)), _ROTATED: rotated}
    if kind == "linear":
        return {**found, _TYPE: kind, _FACTOR: float(rope["factor"])}
    if kind not in _WRITTEN:
        raise ArtifactError(
            f"rotary positions scaled as {kind} are not written to GGUF, only "
            f"{', '.join(_WRITTEN)} and linear: use --format gptq-v2 or compressed-tensors."
        )
    return found


def _scaling(file: GgufFile, config: Config, base: float, rotated: int) -> Config | None:
    name, context = file.architecture, config["max_position_embeddings"]
    factor = file.real(f"{name}.{_FACTOR}", file.real(f"{name}.{_OLD_FACTOR}", 1.0)) or 1.0
    kind = str(file.metadata.get(f"{name}.{_TYPE}", "linear"))
    if kind not in _TYPES:
        raise _unread(file, _TYPE, kind)
    kind = "none" if kind == "linear" and factor == 1 else kind
    attention = file.real(f"{name}.{_ATTENTION}", 1.0)
    original = file.number(f"{name}.{_ORIGINAL}", context)
    factors = {each: file.vector(each, rotated // 2) for each in FACTORS if each in file.tensors}
    long = kind == "longrope" or LONG in factors
    if attention != 1 and not long and kind != "yarn":
        raise _unread(file, _ATTENTION, attention)
    if FREQUENCIES in factors and (long or kind != "none"):
        raise ArtifactError(
            f"{file.path} scales its rotary positions twice, by {_TYPE}={kind} and by "
            f"{FREQUENCIES}, which is not read: use the Hugging Face folder of the model."
        )
    if long:
        lacking = {LONG, SHORT} - factors.keys()
        if lacking:
            raise ArtifactError(
                f"{file.path} has no tensor {min(lacking)}, which its rotary positions "
                f"({_TYPE}={kind}) need: it is damaged; download it again."
            )
        return _listed(factors[SHORT], factors[LONG], original, attention)
    if FREQUENCIES in factors:
        return _llama3(factors[FREQUENCIES], base, rotated, {original, 8192, context}, context)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": attention * (1 + 0.1 * math.log(factor)),
            "beta_fast": file.real(f"{name}.{_FAST}", 32.0),
            "beta_slow": file.real(f"{name}.{_SLOW}", 1.0),
        }
    return None


def _llama3(
    factors: Tensor, base: float, rotated: int, lengths: set[int], context: int
) -> Config | None:
    """The scaling of Llama 3.1 that gives these factors, or a list of them; None: all are 1."""
    if (factors == 1).all():
        return None
    factor = float(f"{float(factors.max()):.6g}")
    for original in sorted(lengths):
        expected = llama3_factors(base, rotated, factor, original)
        if (expected / factors - 1).abs().max() < _CLOSE:
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    return _listed(factors, factors, context, 1.0)


def llama3_factors(base: float, rotated: int, factor: float, original: int) -> Tensor:
    """What Llama 3.1 divides every frequency by (rotated / 2 numbers, float64).

    Waves shorter than a quarter of the original context stay, those longer than it are stretched
    by the factor, between them the frequency is mixed linearly in original / wavelength.
    """
    waves = 2 * math.pi * base ** (torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)
    share = ((original / waves - 1) / 3).clamp(0, 1)
    return 1 / ((1 - share) / factor + share)


def _listed(short: Tensor, long: Tensor, original: int, attention: float) -> Config:
    return {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def _unread(file: GgufFile, key: str, value: object) -> ArtifactError:
    return ArtifactError(
        f"{file.path} scales its rotary positions by {file.architecture}.{key}={value}, which is "
        "not read: use the Hugging Face folder of the model."
    )
