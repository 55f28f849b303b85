"""What the extras of the distribution install, and how to say that one of them is missing.

The base of `pip install bitsweep` is what quant needs. Imports nothing but the standard library.
"""

from __future__ import annotations

from importlib.util import find_spec

from harness.errors import BitsweepError

# Top-level modules that an extra must bring; of those that transformers brings too, some may not be
# there in its next version. argcomplete is none of them: only the shell asks for it.
EXTRAS = {
    "harness": (
        "accelerate",
        "datasets",
        "filelock",
        "hydra",
        "lm_eval",
        "matplotlib",
        "omegaconf",
        "pandas",
        "psutil",
        "pyarrow",
        "pydantic",
        "rich",
        "yaml",
    ),
    "wandb": ("wandb",),
    "slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
}
# What each brings, for those who look what there is.
ABOUT = {
    "harness": "sweeps, suites, reports",
    "wandb": "tracker=wandb",
    "slurm": "hydra/launcher=submitit_slurm",
    "ray": "hydra/launcher=ray",
}


class MissingExtra(BitsweepError):
    """A function that needs packages which an extra of the distribution installs."""


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if not _found(name)]


def pip_command(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "bitsweep[{extra}]"'


def require(extra: str, what: str) -> None:
    """MissingExtra, which begins with `what`, unless every module of an extra is installed."""
    absent = missing(extra)
    if absent:
        packages = "packages that are" if len(absent) > 1 else "a package that is"
        raise MissingExtra(
            f"{what} needs {packages} not installed ({', '.join(absent)}): {pip_command(extra)}."
        )


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of the package above it
        return False
