"""The record: one JSON file per cell and suite, validated when written and when read.

A record holds everything needed to repeat its figures. Raise SCHEMA_VERSION with any change of
meaning, and describe the change in docs/records.md.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_VERSION: Final = 3
QUANTIZATION: Final = "quantization"  # the stage before the suites, in Record.suite
FULL_PRECISION: Final = "none"  # CellIdentity.method of full-precision weights
ABSENT: Final = "Unavailable"  # Failure.type of a model that cannot be had
NOT_AVAILABLE: Final = "n/a"  # states and figures of a model that cannot be had
LOADED: Final = "loaded"  # CellIdentity.method of a checkpoint that was quantized elsewhere
ACTIVATIONS: Final = "-"  # before the grid of activations in CellIdentity.scheme, and nowhere else


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Kinds of packed values, and the bytes of n of them.
PACKED_BYTES: Final[Mapping[str, Callable[[int], int]]] = {
    "bits": lambda n: (n + 7) // 8,  # most significant bit first
    "u4": lambda n: 4 * n,  # unsigned, little-endian
    "f8": lambda n: 8 * n,  # float64, little-endian
}


class Items(_Model):
    """The values of the sampling units behind a figure, in order, for paired comparisons.

    The figure is r = sum(values) / sum(weights), or exp(r). harness.records.items packs and reads.
    """

    unit: str = Field(description="the sampling unit: windows (of a text) or documents (of a task)")
    ids: str = Field(
        description="hash over the units in order; two figures of one hash are on the same units"
    )
    count: int = Field(ge=1)
    values: str = Field(
        description='packed, "KIND:BASE64" (URL-safe alphabet), little-endian: bits (0 or 1), u4 '
        "(unsigned, 4 bytes) or f8 (float64)"
    )
    weights: str | None = Field(
        default=None, description="packed: scored tokens of each window; null: 1 each"
    )
    exponential: bool = Field(
        default=False, description="the figure is exp(sum of values / sum of weights)"
    )

    @model_validator(mode="after")
    def _as_many_as_counted(self) -> Self:
        for text in (self.values, *([] if self.weights is None else [self.weights])):
            kind, _, packed = text.partition(":")
            if kind not in PACKED_BYTES:
                raise ValueError(f"values of the kind {kind[:20]!r} are unknown")
            held = base64.urlsafe_b64decode(packed)
            if len(held) != PACKED_BYTES[kind](self.count):
                raise ValueError(f"{len(held)} bytes are not {self.count} values of {kind}")
            if kind == "f8" and not all(map(math.isfinite, struct.unpack(f"<{self.count}d", held))):
                raise ValueError("a value is not finite")
        return self


class Metric(_Model):
    """One measured figure with its unit and uncertainty."""

    name: str = Field(description="the quantity: perplexity, accuracy, decode_ms, ...")
    task: str = Field(
        description="what it was measured on: protocol, zero-shot task, stage or layer shape"
    )
    value: float
    unit: str = Field(description="ppl, fraction, nat, ms, s, tokens/s, bytes, bits, ratio, ...")
    n: int = Field(ge=0, description="number of observations")
    n_unit: str = Field(description="unit of n: tokens, documents, repeats, ...")
    stderr: float | None = Field(default=None, description="standard error, same unit")
    higher_is_better: bool = False
    quantiles: dict[str, float] | None = Field(default=None, description="p10, p50, p90, p99, ...")
    notes: dict[str, str] = Field(default_factory=dict, description="what a reader must know")
    items: Items | None = Field(
        default=None, description="values of single windows or documents; null: none are kept"
    )


class LayerReport(_Model):
    """The result of the solver for one linear layer."""

    name: str
    block: int
    method: str
    scheme: str
    outputs: int
    inputs: int
    bits_per_weight: float
    loss: float | None = Field(description="GPTQ: sum of (w-q)^2/U_jj^2 / 2; None without Hessian")
    weight_error: float = Field(description="||W - Q||_F / ||W||_F")
    damping: float | None
    dead_columns: int
    tokens: int
    seconds: float
    fallback: str | None = None
    transforms: list[str] = Field(
        default_factory=list, description="what each transform changed, or why it was not applied"
    )
    oracle_gap: float | None = Field(
        default=None,
        description="how far the error of the solver was from that of its textbook oracle on a "
        "piece of the layer, as a share; null where they were not compared",
    )
    code_bits: int | None = Field(
        default=None, description="stored bits of a code; null in older records"
    )
    entropy: float | None = Field(
        default=None,
        description="empirical entropy of the layer's codes, bits a code; null in older records",
    )
    sensitivities: dict[str, float] = Field(
        default_factory=dict,
        description="what each candidate of scheme=auto was measured to cost the layer alone",
    )


class CellIdentity(_Model):
    """The names that tables print; the meaning is in `config`."""

    model: str
    method: str
    scheme: str = Field(description="of the weights, and the grid of simulated activations: w4-a8")
    calibration: str | None
    seed: int
    bits_per_weight: float | None = Field(
        default=None,
        description="stored bits per weight of the blocks' matrices, scales and zero-points "
        "included; matrices that are not quantized count with the bits of their dtype, a quantized "
        "head and quantized embeddings with their own",
    )
    coverage: float | None = Field(
        default=None,
        description="share of the weights of the blocks' matrices that is in quantized layers",
    )
    outside: list[str] = Field(
        default_factory=list, description="matrices of the blocks that stay in full precision"
    )
    label: str | None = Field(
        default=None, description="name of the method in tables (GPTQ); null: `method`"
    )
    options: str | None = Field(
        default=None, description="options of the method that differ from the defaults (act-order)"
    )
    mixture: str | None = Field(
        default=None, description="layers by scheme, if they have several; null: they have one"
    )
    head: str | None = Field(
        default=None,
        description="scheme of the language-model head and how it was quantized; null: it is not",
    )
    embeddings: str | None = Field(
        default=None,
        description="scheme of the token embeddings and how they were quantized, as head; with the "
        "scheme of a head that is tied to them they are one matrix",
    )

    def measured(self) -> dict[str, Any]:
        """The measured fields, which were found when the weights were made."""
        return {
            "bits_per_weight": self.bits_per_weight,
            "coverage": self.coverage,
            "outside": self.outside,
            "mixture": self.mixture,
        }

    @property
    def weights(self) -> str:
        """The scheme of the weights alone: w4 of w4-a8."""
        return self.scheme.partition(ACTIVATIONS)[0]

    @property
    def full_precision(self) -> bool:
        """Whether the weights are not quantized."""
        return self.method == FULL_PRECISION


class Failure(_Model):
    """Why a stage has no figures."""

    stage: str
    type: str
    message: str


class Record(_Model):
    """One suite (or the quantization itself, suite="quantization") on one cell."""

    schema_version: Literal[3] = SCHEMA_VERSION
    key: str = Field(description="sha256 over everything the figures depend on")
    cell_key: str = Field(
        description="sha256 of the cell: model, method, scheme, calibration, seed"
    )
    suite: str
    status: Literal["ok", "failed"]
    cell: CellIdentity
    metrics: list[Metric] = Field(default_factory=list)
    layers: list[LayerReport] = Field(default_factory=list)
    error: Failure | None = None
    config: dict[str, Any] = Field(description="the resolved semantic configuration")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="hashes: model, artifact, token streams, data files"
    )
    weights: dict[str, Any] = Field(
        default_factory=dict,
        description="the model's weight files: which were read, which were not, and which tensors "
        "differ harmlessly between files and model",
    )
    environment: dict[str, Any] = Field(default_factory=dict)
    started_at: str = Field(description="UTC, ISO 8601")
    seconds: float
    peak_memory_bytes: int | None = None
    samples_file: str | None = Field(
        default=None, description="per-document scores (JSON lines), relative to the record"
    )

    @field_validator("started_at")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        datetime.fromisoformat(text)
        return text

    @property
    def start(self) -> datetime:
        """started_at; without a zone it is UTC."""
        found = datetime.fromisoformat(self.started_at)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
