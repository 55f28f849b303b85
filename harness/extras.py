"""The extras of the distribution, and the error for a missing one.

`pip install bitsweep` without extras installs what quant needs. Imports only the standard library.
"""

from __future__ import annotations

from importlib.util import find_spec

from harness.errors import BitsweepError

# Top-level modules that an extra installs, including some that today's transformers installs too.
# argcomplete is not listed: only the shell needs it.
EXTRAS = {
    "harness": (
        "accelerate",
        "datasets",
        "filelock",
        "fontTools",
        "hydra",
        "jinja2",
        "lm_eval",
        "matplotlib",
        "numpy",
        "omegaconf",
        "pandas",
        "plotly",
        "psutil",
        "pyarrow",
        "pydantic",
        "rich",
        "scipy",
        "yaml",
    ),
    "gguf": ("gguf",),
    "wandb": ("wandb", "wandb_workspaces"),
    "slurm": ("submitit",),
    "ray": ("ray",),
}
# What each extra is for, for `doctor`.
ABOUT = {
    "harness": "sweeps, suites, reports",
    "gguf": "models in GGUF files (quant.checkpoint.gguf)",
    "wandb": "tracker=wandb, bitsweep sync",
    "slurm": "hydra/launcher=slurm and hydra/launcher=local",
    "ray": "hydra/launcher=ray",
}


class MissingExtra(BitsweepError):
    """A function needs packages of an extra that is not installed."""


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if not _found(name)]


def pip_command(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "bitsweep[{extra}]"'


def require(extra: str, what: str) -> None:
    """Raise MissingExtra, beginning with `what`, unless all modules of an extra are installed."""
    absent = missing(extra)
    if absent:
        packages = "packages that are" if len(absent) > 1 else "a package that is"
        raise MissingExtra(
            f"{what} needs {packages} not installed ({', '.join(absent)}): {pip_command(extra)}."
        )


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # its parent package is missing
        return False
