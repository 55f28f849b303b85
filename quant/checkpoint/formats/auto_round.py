"""AutoRound's own configuration around the tensors of GPTQ or AWQ.

`packing_format` says which: GPTQ with zero-points minus one (auto_round:auto_gptq), GPTQ with
zero-points as they are (auto_round, auto_round:gptqmodel), or AWQ (auto_round:auto_awq). The names
are those that AutoRound 0.15 writes and reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from quant.checkpoint.formats import awq, gptq_v1, gptq_v2
from quant.checkpoint.formats.base import CheckpointFormat, Config, Format
from quant.errors import ArtifactError

METHOD = "auto-round"
NAMES = (METHOD, "intel/auto-round")
GPTQ_V1, AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
PACKINGS = (GPTQ_V1, "auto_round", "auto_round:gptqmodel", AWQ)
# The settings of a grid, which a layer may have of its own.
GRID = ("bits", "group_size", "sym")
# Settings that change what a layer computes: read only if they say nothing.
UNREAD = ("super_bits", "super_group_size", "rotation_config")
WHOLE = 16  # bits from which on a layer, or its input, is not quantized
# What AutoRound keeps of a layer, besides.
_OF_INPUTS = ("act_group_size", "act_sym", "act_data_type", "act_dynamic")
_FIELDS = (*GRID, "data_type", "act_bits", *_OF_INPUTS, *UNREAD)


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
    parsed = _parsed(config, packing, where)
    given = config.get("extra_config") or {}
    if not isinstance(given, Mapping):
        raise ArtifactError(f"{where}.extra_config={str(given)[:40]} cannot be read.")
    own = {name: _own(name, said, config, parsed, packing, where) for name, said in given.items()}
    return replace(parsed, own=own)


def _parsed(config: Config, packing: str, where: str) -> CheckpointFormat:
    """Parse the settings of one scheme."""
    if (config.get("data_type") or "int") != "int":
        raise ArtifactError(
            f"{where}.data_type={config['data_type']!r} cannot be read; only int can."
        )
    if (config.get("act_bits") or WHOLE) < WHOLE:
        raise ArtifactError(
            f"{where}.act_bits={config['act_bits']!r} cannot be read: inputs of layers are not "
            "quantized here, and the tensors are others; export without quantized activations."
        )
    for key in UNREAD:
        if config.get(key):
            raise ArtifactError(
                f"{where}.{key}={str(config[key])[:40]} cannot be read: it changes what the "
                "tensors stand for; export without it."
            )
    said = {
        **{key: config[key] for key in GRID if key in config},
        "meta": {"producer": f"auto-round {config.get('autoround_version', '')}".strip()},
    }
    if packing == AWQ:
        return awq.parse({**said, "quant_method": awq.METHOD, "zero_point": True}, where)
    gptq = {**said, "quant_method": "gptq", "desc_act": False}
    if packing == GPTQ_V1:
        return gptq_v1.parse({**gptq, "checkpoint_format": "gptq"}, where)
    return gptq_v2.parse({**gptq, "checkpoint_format": "gptq_v2"}, where)


def _own(
    name: str, said: object, config: Config, layers: CheckpointFormat, packing: str, where: str
) -> Config | None:
    """Return what differs for one entry of extra_config; None for layers in full precision."""
    place = f"{where}.extra_config[{name!r}]"
    if not isinstance(said, Mapping):
        raise ArtifactError(f"{place}={str(said)[:40]} cannot be read; expected settings by name.")
    _require_expression(name, where)
    given = {key: value for key, value in said.items() if value is not None}
    odd = sorted(given.keys() - set(_FIELDS))
    if odd:
        raise ArtifactError(
            f"{place}.{odd[0]}={str(given[odd[0]])[:40]} is not understood; only "
            f"{', '.join(_FIELDS)} are."
        )
    if isinstance(given.get("bits"), int) and given["bits"] >= WHOLE:
        return None
    whole = {**{key: value for key, value in config.items() if key != "extra_config"}, **given}
    own = _parsed(whole, packing, place)
    fields = ("bits", "group_size", "symmetric")
    return {
        each: getattr(own, each) for each in fields if getattr(own, each) != getattr(layers, each)
    }


def _require_expression(name: str, where: str) -> None:
    try:
        re.compile(name)
    except re.error as error:
        raise ArtifactError(
            f"{where}.extra_config names {name!r}, which is neither a layer nor a regular "
            f"expression ({error}): correct config.json."
        ) from error


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
