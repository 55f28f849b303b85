"""Run cells through a launcher plugin of Hydra (hydra/launcher=joblib, ...), a job for each cell.

Jobs write their records to the shared results folder. A job returns only the number of stages it
finished and the failures.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.cell.cells import PendingCell
from harness.cell.plan import CellPlan
from harness.cell.resolve import resolve
from harness.config.compose import CONFIG_NAME, into_mapping, session, to_cell
from harness.config.errors import as_sentences
from harness.config.schema import Cell
from harness.records.store import cell_name
from harness.run.events import Event, Failed, Finished
from harness.run.process import context, run_in_process
from harness.run.sweep import Outcome


def run_with_launcher(
    cells: Sequence[Cell], plans: Sequence[CellPlan], config_dir: Path | None = None
) -> Outcome:
    """Launch every cell with work to do as one job of the chosen launcher; wait for all."""
    outcome = Outcome(cached=sum(len(p.stages) - len(p.todo) for p in plans))
    jobs = [list(cell.overrides) for cell, plan in zip(cells, plans, strict=True) if plan.todo]
    for returned in _launch(jobs, config_dir):
        finished, failures = returned.return_value
        outcome.finished += finished
        outcome.failures += failures
    return outcome


def run_job(
    composed: DictConfig, folder: Path | None = None
) -> tuple[int, list[tuple[str, Failed]]]:
    """Run one job where the launcher put it; return (finished stages, failures).

    folder  the user's configuration folder, whose modules the configuration may name.
    """
    # joblib's workers set a start method that is registered only in them; their children lack it.
    multiprocessing.set_start_method(context().get_start_method(), force=True)
    cell = resolve(to_cell(composed), folder, download=True, without_data=True)
    assert not isinstance(cell, PendingCell)
    name = cell_name(cell.identity)
    events: list[Event] = []
    log = cell.choices.results / "runs" / "jobs" / f"{name}.log"
    run_in_process(cell, events.append, log)
    finished = sum(isinstance(event, Finished) and not event.cached for event in events)
    return finished, [(name, event) for event in events if isinstance(event, Failed)]


def _launch(jobs: list[list[str]], config_dir: Path | None) -> Sequence[Any]:
    """Take Hydra's steps of a multirun, with our list of jobs instead of its sweeper's."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    with session(config_dir) as searchpath, as_sentences(config_dir):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        master = _composed(jobs[0], searchpath)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(hydra.config_loader, Callbacks(master)),
            task_function=partial(run_job, folder=config_dir),
            config=master,
        )
        tasks = [[into_mapping(o) for o in job if not o.startswith("hydra")] for job in jobs]
        return launcher.launch(tasks, initial_job_idx=0)


def composed_launcher(cells: Sequence[Cell], config_dir: Path | None) -> DictConfig:
    """The settings of the launcher that the cells' command line chooses."""
    with session(config_dir) as searchpath, as_sentences(config_dir):
        found: DictConfig = _composed(cells[0].overrides, searchpath).hydra.launcher
        return found


def _composed(overrides: Sequence[str], searchpath: Sequence[str]) -> DictConfig:
    """The configuration of Hydra itself, for the launcher."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    ours = [into_mapping(o) for o in overrides if o.startswith(("hydra", "paths"))]
    return hydra.compose_config(
        config_name=CONFIG_NAME,
        overrides=[*searchpath, *ours],
        run_mode=RunMode.MULTIRUN,
        from_shell=False,
        with_log_configuration=False,
    )
