"""AutoRound's own configuration around the tensors of GPTQ or AWQ.

`packing_format` says which: GPTQ with zero-points minus one (auto_round:auto_gptq), GPTQ with
zero-points as they are (auto_round, auto_round:gptqmodel), or AWQ (auto_round:auto_awq). The names
are those that AutoRound 0.15 writes and reads.
"""

from __future__ import annotations

from collections.abc import Mapping

from quant.checkpoint.formats import awq, gptq_v1, gptq_v2
from quant.checkpoint.formats.base import CheckpointFormat, Config, Format
from quant.errors import ArtifactError

METHOD = "auto-round"
NAMES = (METHOD, "intel/auto-round")
GPTQ_V1, AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
PACKINGS = (GPTQ_V1, "auto_round", "auto_round:gptqmodel", AWQ)
# The settings of a layer that make it another scheme.
OF_SCHEME = ("bits", "group_size", "sym", "data_type")
WHOLE = 16  # bits from which on a layer is not quantized


def matches(config: Config) -> bool:
    return config.get("quant_method") in NAMES


def parse(config: Config, where: str) -> CheckpointFormat:
    """Parse the settings that GPTQ or AWQ need; the result has the format of the tensors."""
    packing = config.get("packing_format", GPTQ_V1)
    if packing not in PACKINGS:
        raise ArtifactError(
            f"{where}.packing_format={packing!r} cannot be read; only {', '.join(PACKINGS)} can: "
            "export again in one of these with AutoRound's format=..."
        )
    if config.get("data_type", "int") != "int":
        raise ArtifactError(
            f"{where}.data_type={config['data_type']!r} cannot be read; only int can."
        )
    _refuse_mixed(config, where)
    said = {
        **{key: config[key] for key in ("bits", "group_size", "sym") if key in config},
        "meta": {"producer": f"auto-round {config.get('autoround_version', '')}".strip()},
    }
    if packing == AWQ:
        return awq.parse({**said, "quant_method": awq.METHOD, "zero_point": True}, where)
    gptq = {**said, "quant_method": "gptq", "desc_act": False}
    if packing == GPTQ_V1:
        return gptq_v1.parse({**gptq, "checkpoint_format": "gptq"}, where)
    return gptq_v2.parse({**gptq, "checkpoint_format": "gptq_v2"}, where)


def _refuse_mixed(config: Config, where: str) -> None:
    """Raise ArtifactError for a layer with a scheme of its own; unquantized layers are fine."""
    for name, own in (config.get("extra_config") or {}).items():
        if not isinstance(own, Mapping) or (own.get("bits") or 0) >= WHOLE:
            continue
        other = [key for key in OF_SCHEME if own.get(key, config.get(key)) != config.get(key)]
        if other:
            raise ArtifactError(
                f"{where}.extra_config gives {name} {other[0]}={own[other[0]]!r}, where other "
                f"layers have {config.get(other[0])!r}: checkpoints of several schemes are not "
                "read; make one with a single scheme."
            )


FORMAT = Format(
    name="auto-round",
    title="AutoRound",
    quant_method=METHOD,
    variant="packing_format auto_round:auto_gptq, auto_round:gptqmodel or auto_round:auto_awq",
    readers="AutoRound, transformers, vLLM; Bitsweep reads it and does not write it",
    parts=("qweight", "qzeros", "scales"),
    codes="qweight",
    scales="scales",
    matches=matches,
    parse=parse,
    # What `parse` returns has another format, whose functions read the tensors.
    zero_points=gptq_v1.zero_points,
    read_layer=gptq_v1.read_layer,
)
