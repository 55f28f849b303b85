"""Compose conf/ and the command line into cells. Only this and harness.launchers.plugin use Hydra.

Hydra's compose API turns overrides into one configuration, typed by
harness.config.schema.SweepConfig, so a wrong key or type is an error. The cells of a sweep are a
union of products, which Hydra's sweepers do not support: the product of the swept overrides on the
command line and, at each of its points, the union of the products in the configuration's `sweep`
list. A key on the command line wins over the same key in `sweep`. `seeds` repeats every cell with
the next seeds (harness.cell.seeds drops those that see no calibration text). Equal cells are kept
once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from harness.config.derive import SEED, Composed, Composer, Entry, composed
from harness.config.errors import as_sentences
from harness.config.help import conf_dir, groups, options, user_folders
from harness.config.hints import SEVERAL
from harness.config.own import check_files
from harness.config.schema import Cell, CellConfig, SweepConfig
from harness.errors import ConfigError
from quant.budget import AnyScheme, Budget, parse_scheme
from quant.errors import SchemeError
from quant.scheme import OUTSIDE

VERSION_BASE = "1.3"
CONFIG_NAME = "config"
SCHEMA_NAME = "bitsweep_schema"
SCHEMES = "scheme"  # the group whose options may also be names such as w4g128
SWAPPED = ("model", "method", "scheme", "calib")  # groups whose options a sweep goes through
LISTS = ("suite", "tasks", "protocols")  # keys that hold a list
SEEDS = "seeds"  # the number of seeds
MOST_SEEDS = 1000
# Keys below these go into mappings; modules of parts define them (harness.config.options).
MAPPINGS = (
    "scheme.layers",
    "method.",
    "transform.",
    "suite.",
    "model.expected.",
    "hydra.launcher.options.",
)


def compose_cells(
    overrides: Sequence[str], multirun: bool = False, extra: Path | None = None
) -> list[Cell]:
    """Compose the cells of a command line, in order and without duplicates; at least one.

    multirun  allow overrides with several values (scheme=w4,w3).
    extra     a user's folder, laid out like conf/, that is searched too.

    Raises ConfigError for anything that Hydra refuses.
    """
    with session(extra) as searchpath, as_sentences(extra):
        parsed = parse(overrides)
        if not multirun:
            _refuse_lists(parsed)
        composer = Composer(partial(_compose_entry, searchpath), SWAPPED, user_folders(extra))
        cells: dict[str, Cell] = {}
        first: dict[Entry, int] = {}
        for point in product(parsed):
            # Keys of the command line replace those of the list, so that entries become equal.
            entries = _sweep_entries(composer.configuration(point).sweep, point)
            for entry, repeats in _with_seeds(dict.fromkeys(entries), composer, first):
                found = composer.configuration(entry)
                config = _cell(found)
                cell = Cell(config, entry, extra, tuple(found.published), repeats)
                # Compared by content: entries may reach the same cell in two ways.
                known = cells.setdefault(repr(config), cell)
                if known.repeats and not repeats:
                    cells[repr(config)] = cell
    return list(cells.values())


def _with_seeds(
    entries: Iterable[Entry], composer: Composer, first: dict[Entry, int]
) -> Iterator[tuple[Entry, bool]]:
    """Every entry and, where it has several `seeds`, the same with each next one (True).

    first  the first seeds of earlier entries, by their other overrides; updated.
    """
    for entry in entries:
        config = composer.configuration(entry)
        number, seed = config.seeds, config.seed
        if not 1 <= number <= MOST_SEEDS:
            raise ConfigError(
                f"{SEEDS}={number} is not a number of seeds; use 1 to {MOST_SEEDS}, or seed=N for "
                "one seed of your choice."
            )
        if number == 1:
            yield entry, False
            continue
        frame = tuple(o for o in entry if o.partition("=")[0] not in (SEED, SEEDS))
        if first.setdefault(frame, seed) != seed:
            raise ConfigError(
                f"{SEEDS}={number} counts seeds from one on, but seed has several values "
                f"({first[frame]} and {seed}): leave one of the two keys out."
            )
        for repeat in range(number):
            yield (*frame, f"{SEED}={seed + repeat}"), repeat > 0


@contextmanager
def session(extra: Path | None = None) -> Iterator[list[str]]:
    """Context: Hydra initialised on conf/; yields the overrides that add the user's folder."""
    store = ConfigStore.instance()
    if f"{SCHEMA_NAME}.yaml" not in store.repo:  # making it takes a tenth of the time for a cell
        store.store(name=SCHEMA_NAME, node=SweepConfig)
    folders = user_folders(extra)
    for folder in folders:
        _refuse_names_twice(folder)
        check_files(folder, (group.name for group in groups()))
    searchpath = [f"hydra.searchpath=['file://{folder.absolute()}']" for folder in folders]
    with initialize_config_dir(str(conf_dir()), job_name="bitsweep", version_base=VERSION_BASE):
        yield searchpath


def _refuse_names_twice(extra: Path) -> None:
    """Refuse a user's option with the name of one in conf/, because Hydra would never read it."""
    for group in groups():
        for name in options(group.name):
            if (extra / group.name / f"{name}.yaml").exists():
                raise ConfigError(
                    f"--config-dir {extra} has {group.name}/{name}.yaml, but conf/ has a file of "
                    "that name too: rename yours."
                )


def compose_one(overrides: Sequence[str]) -> DictConfig:
    """Compose one configuration; a scheme without a file is parsed from its name."""
    store, parsed = ConfigStore.instance(), []
    try:
        while True:
            try:
                return compose(CONFIG_NAME, [into_mapping(each) for each in overrides])
            except MissingConfigException as error:
                missing = (error.missing_cfg_file or "").removesuffix(".yaml")
                group, _, name = missing.partition("/")
                if group != SCHEMES:
                    raise
                try:
                    scheme = parse_scheme(name)
                except SchemeError as reason:
                    raise error from reason
                store.store(group=SCHEMES, name=name, node=_node(scheme))
                parsed.append(f"{name}.yaml")
    finally:
        for file in parsed:  # a later scheme=glob(...) is of files only
            del store.repo[SCHEMES][file]


def _compose_entry(searchpath: Sequence[str], entry: Entry) -> Composed:
    return composed(compose_one([*searchpath, *entry]))


def _node(scheme: AnyScheme) -> dict[str, Any]:
    """A scheme as a file of conf/scheme has it."""
    if isinstance(scheme, Budget):
        return {"bits": 16, "budget": scheme.bits}
    own = {what: _node(each) for what, each in scheme.outside.items()}
    layers = asdict(scheme.without_head).items()
    return {name: value for name, value in layers if name not in (*OUTSIDE, "layers")} | own


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar; the last one of a key wins."""
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    parsed = parser.parse_overrides(list(overrides))
    for override in parsed:
        if override.is_add() and not override.is_force_add():
            raise ConfigError(
                f"{override.input_line} would add a key that nothing reads: remove the +; "
                "every key and group that exists can be set without it."
            )
    latest = {override.get_key_element(): override for override in parsed}
    for group in SEVERAL:
        if group in latest:
            _refuse_twice(group, latest[group])
    return list(latest.values())


def _refuse_twice(group: str, override: Override) -> None:
    """Refuse a list that chooses one option of a group twice: Hydra would read it once."""
    given = override.value()
    for chosen in given.list if isinstance(given, ChoiceSweep) else [given]:
        names = [str(name) for name in chosen] if isinstance(chosen, list) else []
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(
                f"{override.input_line} has {twice[0]} twice, and each {group} is "
                "taken once: leave one out."
            )


def product(parsed: Sequence[Override]) -> list[tuple[str, ...]]:
    """All combinations of the values of swept overrides, the last one changing fastest."""
    choices = []
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices.append([override.input_line or key])
        elif override.is_discrete_sweep():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            raise ConfigError(
                f"{override.input_line} is an interval, and a sweep needs separate values: "
                f"use {key}=a,b,c or {key}=range(start,stop,step)."
            )
    return list(itertools.product(*choices))


def to_cell(composed: DictConfig) -> CellConfig:
    """Convert a composed configuration to plain dataclasses, with absolute folders."""
    return _cell(_resolved(composed))


def _resolved(composed: DictConfig) -> SweepConfig:
    config = OmegaConf.to_object(composed)
    assert isinstance(config, SweepConfig)
    return config


def _cell(config: SweepConfig) -> CellConfig:
    cell = CellConfig(**{field.name: getattr(config, field.name) for field in fields(CellConfig)})
    cell.paths.results = str(Path(cell.paths.results).expanduser().absolute())
    if cell.paths.data is not None:
        cell.paths.data = str(Path(cell.paths.data).expanduser().absolute())
    if cell.model.path is not None:
        cell.model.path = str(Path(cell.model.path).expanduser().absolute())
    return cell


def into_mapping(override: str) -> str:
    """An override for Hydra, with ++ if it may add a new key to a mapping."""
    return f"++{override}" if override.startswith(MAPPINGS) else override


def _sweep_entries(sweep: list[dict[str, Any]], point: Entry) -> list[Entry]:
    """The overrides of every cell at one point of the command line's product."""
    if not sweep:
        return [point]
    given = {override.get_key_element() for override in parse(point)}
    if SEEDS in given:  # the seeds of the command line replace those of the list
        given.add(SEED)
    found: list[Entry] = []
    for entry in sweep:
        kept = {key: value for key, value in entry.items() if key not in given}
        found += [(*point, *each) for each in product(parse(_as_overrides(kept)))]
    return found


def _as_overrides(entry: dict[str, Any]) -> list[str]:
    """{method: [rtn, gptq], seed: 1} as method=rtn,gptq and seed=1."""
    return [
        f"{key}={','.join(_text(v) for v in value) if isinstance(value, list) else _text(value)}"
        for key, value in entry.items()
    ]


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _or_one_list(key: str) -> str:
    return f", or write {key}=[...] for one list" if key.endswith(LISTS) else ""


def _refuse_lists(parsed: Sequence[Override]) -> None:
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line} gives several values: add -m to run all of them as a sweep"
                f"{_or_one_list(override.get_key_element())}."
            )
