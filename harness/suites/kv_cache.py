"""Quantized and evicting key-value caches at equal bytes, against position in the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.config.options import build_options
from harness.data import protocols
from harness.data.texts import ProtocolError
from harness.errors import ConfigError
from harness.report.columns import AgainstPosition, OwnTable, Place, SuiteTable
from harness.suites import kv_cache_table, perplexity, reading
from harness.suites.base import Facts, Suite, SuiteContext, SuiteResult, at_least_one
from quant.kv.base import KvCacheError
from quant.kv.support import Chosen, expected_shape, find_scheme, head_counts, why_not

if TYPE_CHECKING:
    from harness.config.schema import ModelConfig
    from quant.memory.plan import Item
    from quant.memory.shapes import ModelShape

NAME = kv_cache_table.NAME
LEAST_LENGTH = 16


@dataclass
class Config:
    """The caches, and the texts whose windows they are held on.

    protocols  texts in consecutive windows; none: those that belong to the model.
    lengths    tokens of a window, at which budgets are met; none: the model's full context.
    bits       budgets: bits for each number of a full cache, everything stored counted.
    tokens     of each text, in whole windows, one at least.
    schemes    files of quant/kv/schemes, or modules of yours with dots.
    options    of schemes, by name.
    """

    protocols: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    bits: list[float] = field(default_factory=lambda: [4.0])
    tokens: int = 16384
    schemes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def chosen(config: Config, key: str = f"suite.{NAME}") -> list[Chosen]:
    """The schemes in order. Raises ConfigError for one that is not there, and for its options."""
    found = []
    for name in config.schemes:
        try:
            scheme, sha256 = find_scheme(name)
        except KvCacheError as error:
            raise ConfigError(f"{key}.schemes: {error}") from error
        given = config.options.get(scheme.name) or {}
        where = f"{key}.options.{scheme.name}"
        found.append(Chosen(scheme, build_options(scheme.options, given, where, name), sha256))
    names = [each.scheme.name for each in found]
    if not names:
        raise ConfigError(f"{key}.schemes is empty: name a scheme, such as [kivi].")
    if len(set(names)) < len(names):
        raise ConfigError(f"{key}.schemes={config.schemes} names a scheme twice: name each once.")
    if unread := [name for name in config.options if name not in names]:
        raise ConfigError(
            f"{key}.options.{unread[0]} has no effect, because {unread[0]} is not among "
            f"{key}.schemes={config.schemes}: add it, or leave the options out."
        )
    return found


def complete(config: Config, model: ModelConfig, others: Sequence[Any]) -> Config:
    """Fill in the model's texts, in consecutive windows, and files of the perplexity suite."""
    names = list(dict.fromkeys(config.protocols or map(_consecutive, model.protocols)))
    beside = next((each for each in others if isinstance(each, perplexity.Config)), None)
    taken = {} if beside is None else {n: p for n, p in beside.paths.items() if n in names}
    options = {name: given for name, given in config.options.items() if given}
    return replace(config, protocols=names, paths={**taken, **config.paths}, options=options)


def _consecutive(name: str) -> str:
    """The protocol that joins the documents of another, where there is one of that name."""
    try:
        protocols.find(joined := f"{name}-joined")
    except ProtocolError:
        return name
    return joined


def check(config: Config, facts: Facts) -> None:
    """Raise ConfigError for a text, a length, a scheme or a budget that cannot be."""
    key = facts.key
    reading.check(_texts(config), facts)
    for name in config.protocols:
        if not protocols.find(name).one_length:
            raise ConfigError(
                f"{key}.protocols={name} has windows of unequal length, in which no cache meets "
                "its budget: use a text in consecutive windows, such as embedded-joined or text."
            )
    at_least_one(f"{key}.tokens", config.tokens)
    if not config.bits:
        raise ConfigError(f"{key}.bits is empty: give a budget, such as [4].")
    for bits in config.bits:
        if not 0 < bits < 16:
            raise ConfigError(f"{key}.bits={bits:g} is no budget: use more than 0, less than 16.")
    schemes = chosen(config, key)
    shape = facts.shape
    if shape is None:
        return
    if (why := why_not(shape)) is not None:
        raise ConfigError(
            f"{key}: model={facts.model} has {why}, not a standard cache of all tokens: leave "
            "suite=kv_cache out, or choose another model."
        )
    lengths = _lengths(config, facts)
    if (cached := expected_shape(shape)) is not None:
        for length in lengths:
            for bits in config.bits:
                for each in schemes:
                    try:
                        each.solve(cached, length, bits)
                    except KvCacheError as error:
                        raise ConfigError(f"{key}: {error}") from error


def _lengths(config: Config, facts: Facts) -> list[int]:
    own = protocols.stated_length(SimpleNamespace(**facts.shape or {}))
    if not config.lengths and own is None:
        raise ConfigError(
            f"{facts.key}: the config of model={facts.model} states no context: set "
            f"{facts.key}.lengths=[2048]."
        )
    for length in config.lengths:
        if length < LEAST_LENGTH or (own is not None and length > own):
            most = "" if own is None else f" to {own}, the context of model={facts.model}"
            raise ConfigError(
                f"{facts.key}.lengths={length} cannot be: use {LEAST_LENGTH}{most or ' or more'}."
            )
    return config.lengths or [own or 0]


def _texts(config: Config) -> perplexity.Config:
    return perplexity.Config(config.protocols, config.paths)


def inputs(config: Config, facts: Facts) -> dict[str, str]:
    """Hashes of the texts, and of schemes that are not of Bitsweep."""
    code = {each.scheme.name: each.sha256 for each in chosen(config, facts.key)}
    found = {f"kv scheme {name}": sha256 for name, sha256 in code.items() if sha256 is not None}
    return reading.inputs(_texts(config), facts) | found


def semantics(config: Config) -> dict[str, Any]:
    """The settings, with all options of every scheme and its version."""
    found = reading.semantics(config)
    del found["options"]
    found["schemes"] = {
        each.scheme.name: {"version": each.scheme.version, **dataclasses.asdict(each.options)}
        for each in chosen(config)
    }
    return found


def memory(config: Config, facts: Facts, shape: ModelShape) -> Sequence[Item]:
    """What is held beside the weights; nothing where config.json does not say how many heads."""
    from harness.suites import kv_cache_memory
    from quant.memory.plan import IN_HOST, ON_DEVICE

    told = facts.shape or {}
    heads, cached = head_counts(told), expected_shape(told)
    if heads is None or cached is None:
        return []
    longest = max(_lengths(config, facts))
    return list(
        kv_cache_memory.items(
            shape,
            heads,
            cached.keys,
            longest,
            max(config.tokens, longest),
            chosen(config, facts.key),
            len(config.bits),
            ON_DEVICE if facts.device.startswith("cuda") else IN_HOST,
        )
    )


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Measure every scheme at every length and budget."""
    from harness.suites import kv_cache_run

    return kv_cache_run.run(context, config, chosen(config))


CURVES = (
    AgainstPosition(
        kv_cache_table.KL_BY_POSITION,
        "kv_divergence_by_position",
        "Divergence from the full cache against position",
        "KL full‖scheme, nat",
        by=kv_cache_table.SCHEME,
    ),
    AgainstPosition(
        kv_cache_table.EXCESS_BY_POSITION,
        "kv_excess_loss_by_position",
        "Loss above that of the full cache against position",
        "loss above full, nat a token",
        by=kv_cache_table.SCHEME,
    ),
)

SUITE = Suite(
    name=NAME,
    version=1,
    config=Config,
    run=run,
    complete=complete,
    check=check,
    inputs=inputs,
    semantics=semantics,
    memory=memory,
    preload=("harness.suites.kv_cache_run",),
    table=SuiteTable(
        tables=(OwnTable(Place(NAME, kv_cache_table.TITLE, 22), kv_cache_table.table),),
        curves=CURVES,
    ),
)
