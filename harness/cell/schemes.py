"""The scheme of a cell from its configuration: of all layers, of single layers, or chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from harness.config.hints import scheme_hint
from harness.config.schema import OutsideConfig, SchemeConfig
from harness.errors import ConfigError
from quant.allocation import Allocation, AskedScheme
from quant.budget import Budget
from quant.errors import SchemeError
from quant.parts import Part
from quant.scheme import OUTSIDE, Scheme

NOT_QUANTIZED = 16  # bits


def make_scheme(config: SchemeConfig, levels: Part | None = None) -> AskedScheme | None:
    """The scheme or budget of a cell, or how schemes are chosen; None if bits=16.

    levels  the user's module that the configuration names; None for built-in levels.

    Raises ConfigError for an impossible scheme.
    """
    if config.budget is not None:
        return _budget(config)
    if config.bits == NOT_QUANTIZED:
        if config != SchemeConfig(bits=NOT_QUANTIZED):
            raise ConfigError(
                "scheme.bits=16 is not quantized and has no groups, symmetry, levels, grid, head "
                "or embeddings: use scheme=w16 alone, or a scheme of 8 bits or less."
            )
        return None
    if config.auto is not None:
        return _allocation(config, levels)
    if config.bits != int(config.bits):
        raise ConfigError(
            f"scheme.bits={config.bits} is not a bit width of one scheme: use scheme=auto "
            f"scheme.bits={config.bits} to give layers schemes with that mean, or whole bits."
        )
    try:
        fields = {**_fields(config), "bits": int(config.bits)}
        own = {} if levels is None else {"levels": levels}
        fields |= _outside(config, own)
        fields["layers"] = tuple(
            (pattern, _named(f"scheme.layers[{pattern}]", name, levels))
            for pattern, name in config.layers.items()
        )
        scheme = Scheme(**{**fields, **own})
    except SchemeError as error:
        raise ConfigError(f"scheme: {error}") from error
    if levels is not None:
        _require_own_scheme(scheme, levels)
    return scheme


def _budget(config: SchemeConfig) -> Budget:
    """The budget of a cell. Raises ConfigError for keys of a grid beside it."""
    assert config.budget is not None
    if config != SchemeConfig(bits=NOT_QUANTIZED, budget=config.budget):
        raise ConfigError(
            f"scheme.budget={config.budget:.10g} has no codes, groups, levels, grid, head or "
            f"embeddings: use scheme=budget{config.budget:.10g} alone, or leave the budget out."
        )
    try:
        return Budget(config.budget)
    except SchemeError as error:
        raise ConfigError(f"scheme: {error}") from error


def _allocation(config: SchemeConfig, levels: Part | None) -> Allocation:
    """How the schemes of layers are chosen. Raises ConfigError."""
    auto = config.auto
    assert auto is not None
    kept = {name: getattr(config, name) for name in ("bits", "levels", "auto", *OUTSIDE)}
    alone = SchemeConfig(**kept)
    odd = [f.name for f in dataclasses.fields(config) if _differ(config, alone, f.name)]
    if odd:
        raise ConfigError(
            f"scheme.{odd[0]}={getattr(config, odd[0])} has no effect beside scheme=auto, whose "
            "layers get one of the schemes of scheme.auto.candidates: name it there."
        )
    own = {} if levels is None else {"levels": levels}
    try:
        return Allocation(
            bits=float(config.bits),
            candidates=tuple(
                _named("scheme.auto.candidates", name, levels) for name in auto.candidates
            ),
            sensitivity=auto.sensitivity,
            tokens=auto.tokens,
            fused=auto.fused,
            **_outside(config, own),
        )
    except SchemeError as error:
        raise ConfigError(f"scheme.{error}") from error


def _differ(config: SchemeConfig, other: SchemeConfig, field: str) -> bool:
    return bool(getattr(config, field) != getattr(other, field))


def _fields(config: SchemeConfig) -> dict[str, Any]:
    """The fields of Scheme that a configuration has as they are."""
    names = ("group_size", "symmetric", "levels", "grid", "scale_dtype")
    return {name: getattr(config, name) for name in names}


def _named(key: str, name: str, levels: Part | None) -> Scheme:
    """The scheme of one layer by its name. Raises ConfigError."""
    try:
        return Scheme.parse(name, () if levels is None else (levels,))
    except SchemeError as error:
        raise ConfigError(f"{key}{scheme_hint(name) or ''}: {error}") from error


def _outside(config: SchemeConfig, levels: Mapping[str, Part]) -> dict[str, Scheme | None]:
    """The schemes of head and embeddings, None if they are not quantized. Raises ConfigError.

    levels  the user's module of levels as a keyword, if the layers have one.
    """
    found: dict[str, Scheme | None] = {}
    for what in OUTSIDE:
        given: OutsideConfig = getattr(config, what)
        if given.bits is None and given != OutsideConfig():
            raise ConfigError(
                f"scheme.{what} has no bits, so its other keys have no effect: add "
                f"scheme.{what}.bits=8, or leave them out."
            )
        own = levels if given.levels == config.levels else {}
        try:
            found[what] = (
                None if given.bits is None else Scheme(**{**dataclasses.asdict(given), **own})
            )
        except SchemeError as error:
            raise ConfigError(f"scheme.{what}: {error}") from error
    return found


def _require_own_scheme(scheme: Scheme, levels: Part) -> None:
    """Refuse a scheme of a user's levels that has the name of a built-in scheme."""
    try:
        Scheme.parse(scheme.without_head.name)
    except SchemeError:
        return
    raise ConfigError(
        f"scheme.levels: {levels.where} names a scheme {scheme.name}, which Bitsweep has already: "
        "give its LEVELS another prefix, because tables name schemes by it."
    )
