"""Which launcher a command line chooses, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cell.parts import MODULE
from harness.config.options import build_options
from harness.config.schema import Cell
from harness.extras import require
from harness.launchers.base import Launcher
from quant.parts import Part

GROUP = "hydra/launcher"


@dataclass(frozen=True)
class Chosen:
    """A launcher with its options."""

    launcher: Launcher
    options: Any


def is_chosen(cells: Sequence[Cell]) -> bool:
    """Whether the command line names a launcher other than Hydra's basic one."""
    start = f"{GROUP}="
    names = {o.removeprefix(start) for cell in cells for o in cell.overrides if o.startswith(start)}
    return bool(names - {"basic"})


def chosen(cells: Sequence[Cell], config_dir: Path | None) -> Chosen | None:
    """The launcher of ours that the command line chooses; None for none, or for a plugin of Hydra.

    Raises ConfigError for options that cannot be, and MissingExtra for packages that are not here.
    """
    if not is_chosen(cells):
        return None
    from omegaconf import OmegaConf

    from harness.launchers.plugin import composed_launcher

    node: Any = OmegaConf.to_container(composed_launcher(cells, config_dir))
    if MODULE not in node:
        return None
    return _built(node)


def runs_elsewhere(found: Chosen | None) -> bool:
    """Whether cells run on machines of which this one knows nothing."""
    return found is not None and found.launcher.elsewhere


def _built(node: Mapping[str, Any]) -> Chosen:
    module = str(node[MODULE])
    launcher = Part(module).load("LAUNCHER", Launcher)
    require(launcher.extra, f"{GROUP}={launcher.name}")
    given = {name: value for name, value in node.items() if name != MODULE}
    return Chosen(launcher, build_options(launcher.options, given, "hydra.launcher", module))
