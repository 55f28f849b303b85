"""Checks of a cell's choices against each other; each failure is a ConfigError with the next step.

Nothing is loaded. OmegaConf checks types and names of keys; a part checks its own options.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from cuda_ext.kernels import KernelUnavailable, resolve_kernel
from harness.cell.parts import Measuring, Solving, Transforming
from harness.config.schema import CellConfig
from harness.data import chat, protocols, texts
from harness.data.config import CalibConfig
from harness.errors import ConfigError, MissingData
from harness.extras import EXTRAS, missing, pip_command
from harness.models.model import SOURCES, AbsentModel, Model, RandomModel
from harness.models.streaming import ALWAYS, AUTO, NEVER
from harness.tracking import MODES, TRACKERS, require_project
from quant.allocation import Allocation, AskedScheme
from quant.arithmetic import ARITHMETIC
from quant.budget import Budget
from quant.solvers.base import refusal
from quant.transforms.order import order_refusal

DTYPES = ("float32", "float16", "bfloat16")
ATTENTION = ("sdpa", "eager")
ACTIVATIONS = ("auto", "cuda", "cpu", "disk")
MOST_SEED = 2**63 - 1
STREAM = (AUTO, ALWAYS, NEVER)


def values(config: CellConfig) -> None:
    """Check keys with a fixed set of values, and the ranges of numbers."""
    for key, value, allowed in (
        ("model.source", config.model.source, tuple(SOURCES)),
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.attention", config.model.attention, ATTENTION),
        ("tracker.name", config.tracker.name, TRACKERS),
        ("tracker.mode", config.tracker.mode, MODES),
        ("runtime.activations", config.runtime.activations, ACTIVATIONS),
        ("runtime.stream", config.runtime.stream, STREAM),
    ):
        if value not in allowed:
            raise ConfigError(f"{key}={value} is unknown; choose one of {', '.join(allowed)}.")
    if config.tracker.name in EXTRAS and missing(config.tracker.name):
        raise ConfigError(
            f"tracker={config.tracker.name} needs a package that is not installed: "
            f"{pip_command(config.tracker.name)}, or use tracker=none."
        )
    require_project(config.tracker.project, "tracker.project=")
    for key, number, least in (
        ("seed", config.seed, 0),
        ("calib.seed", config.calib.seed, 0),
        ("model.context", config.model.context, 2),
        ("runtime.threads", config.runtime.threads, 1),
    ):
        if number is not None and number < least:
            raise ConfigError(f"{key}={number} is too small; use {least} or more.")
    numbers = {f"model.expected.{name}": value for name, value in config.model.expected.items()}
    for key, share in {"runtime.timeout_s": config.runtime.timeout_s, **numbers}.items():
        if share is not None and not math.isfinite(share):
            raise ConfigError(f"{key}={share} is not finite; use a finite number.")
    for key, seed in (("seed", config.seed), ("calib.seed", config.calib.seed)):
        if seed > MOST_SEED:
            raise ConfigError(
                f"{key}={seed} is too large for the random number generator; use 0 to {MOST_SEED}."
            )


def arithmetic(name: object) -> None:
    """Check that the arithmetic exists."""
    if name not in ARITHMETIC:
        raise ConfigError(
            f"method.arithmetic={name} is unknown; choose one of {', '.join(ARITHMETIC)}."
        )


def method_and_scheme(
    solving: Solving | None, scheme: AskedScheme | None, model: Model | AbsentModel
) -> None:
    """Check that a solver has a scheme and unquantized weights, and method=none neither."""
    if model.checkpoint is not None:
        if solving is not None:
            found, name = model.checkpoint, solving.solver.name
            raise ConfigError(
                f"model={model.name} is quantized already ({found.scheme.name}, {found.format}, "
                f"producer {found.producer}): use method=none scheme=w16 to measure it as it is, "
                f"or give its full-precision original to method={name}."
            )
        return
    if solving is None and scheme is not None:
        raise ConfigError(
            f"method=none does not quantize, but the scheme has {scheme.bits} bits: "
            "use scheme=w16, or method=rtn or method=gptq."
        )
    if isinstance(scheme, Allocation) and solving and not solving.solver.reads_weights:
        raise ConfigError(
            f"scheme=auto measures what each layer loses, and method={solving.solver.name} makes "
            "weights up: use one scheme, such as scheme=w4."
        )
    if solving is not None and scheme is None:
        raise ConfigError(
            f"method={solving.solver.name} needs a scheme to quantize to, but scheme.bits=16 is "
            "full precision: use a scheme such as w4, or method=none."
        )


def random_weights(
    config: CellConfig,
    solving: Solving | None,
    chosen: Sequence[Measuring],
    model: Model | AbsentModel,
) -> None:
    """Check that a model with random weights is only timed."""
    makes_up = solving is not None and not solving.solver.reads_weights
    if not isinstance(model, RandomModel):
        if makes_up:
            assert solving is not None
            raise ConfigError(
                f"method={solving.solver.name} makes random weights, but model={model.name} has "
                "its own: use model=dummy, or method=rtn or method=gptq."
            )
        if config.model.architecture is not None:
            raise ConfigError(
                f"model.architecture={config.model.architecture} applies to model=dummy only; "
                f"model={model.name} would ignore it: leave it out."
            )
        return
    if "/" in model.name:
        raise ConfigError(f"model.name={model.name} is a path: add model.name=NAME for the tables.")
    if solving is not None and not makes_up:
        raise ConfigError(
            f"method={solving.solver.name} needs weights to quantize, and model=dummy has none: "
            "use method=random for packed weights, or method=none scheme=w16."
        )
    for each in chosen:
        if not each.suite.timing:
            raise ConfigError(
                f"suite {each.suite.name} measures accuracy, and the weights of model=dummy are "
                "random: use suite=[latency,kernels] or one of them."
            )


def transforms(chosen: Sequence[Transforming], solving: Solving | None) -> None:
    """Check that transforms are followed by a solver that reads weights."""
    if chosen and (solving is None or not solving.solver.reads_weights):
        names = ",".join(each.transform.name for each in chosen)
        raise ConfigError(
            f"transform=[{names}] prepares weights for a solver, but the cell has none: "
            "leave it out, or use method=rtn or method=gptq."
        )
    if chosen and solving is not None and solving.solver.whole is not None:
        raise ConfigError(
            f"transform=[{chosen[0].transform.name}] prepares weights for a solver, but "
            f"method={solving.solver.name} is another program, which reads the model's own: "
            "leave it out, or use method=rtn or method=gptq."
        )
    try:
        wrong = order_refusal([(each.transform, each.options) for each in chosen])
    except ValueError as error:  # of a transform of the user
        raise ConfigError(str(error)) from error
    if wrong is not None:
        raise ConfigError(wrong)


def outside(solving: Solving | None, scheme: AskedScheme | None) -> None:
    """Check that nothing is asked of another program that it is not told."""
    if solving is None or solving.solver.whole is None:
        return
    name = solving.solver.name
    for key in solving.rules.given():
        raise ConfigError(
            f"method.{key} is a rule for solvers of layers, and method={name} is another program: "
            "leave it out."
        )
    if scheme is None:
        return
    for what in scheme.outside:
        raise ConfigError(
            f"scheme.{what} cannot be used with method={name}: another program is asked for the "
            f"layers in the blocks only; leave scheme.{what} out."
        )
    if len(scheme.every) > 1:
        raise ConfigError(
            f"scheme={scheme.name} cannot be used with method={name}: another program is asked for "
            "one scheme of all layers; use a single scheme, or method=gptq."
        )


def scheme_of_solver(solving: Solving | None, scheme: AskedScheme | None) -> None:
    """Check that the solver can be asked for the scheme."""
    if solving is None or scheme is None:
        return
    for each in scheme.every:
        reason = refusal(solving.solver, solving.options, each, solving.rules)
        if reason is not None:
            name = solving.solver.name
            raise ConfigError(f"method={name} cannot be asked for {each.name}: {reason}.")


def allocation(chosen: Sequence[Transforming], scheme: AskedScheme | None) -> None:
    """Check that what candidates cost can be measured."""
    names = [each.transform.name for each in chosen]
    reason = scheme.refuses(names) if isinstance(scheme, Allocation) else None
    if reason is not None:
        raise ConfigError(f"scheme.{reason}")
    if chosen and isinstance(scheme, Budget):
        raise ConfigError(
            f"transform=[{chosen[0].transform.name}] makes weights easier to round, and "
            f"scheme={scheme.name} rounds to no grid: leave the transform out."
        )


def suites(chosen: Sequence[Measuring], activations: str) -> None:
    """Check that a suite is chosen, and that no time is measured of simulated activations."""
    if not chosen:
        raise ConfigError(
            "suite is empty, so there is nothing to measure: choose some, for example "
            "suite=[perplexity,latency]; `bitsweep run --help suite` lists them."
        )
    timed = [each.suite.name for each in chosen if each.suite.timing]
    if activations and timed:
        raise ConfigError(
            f"suite {timed[0]} measures time, and activations ({activations}) are simulated here: "
            "their products have the speed of the model's dtype, and the rounding comes on top; "
            "measure accuracy alone, for example suite=[perplexity]."
        )


def calibration(
    calib: CalibConfig,
    solving: Solving | None,
    chosen: Sequence[Transforming],
    data: str | None,
    model: Model | AbsentModel,
) -> None:
    """Check the calibration text that a solver or transform needs."""
    if calib.protocol == "none" or calib.sequences < 1:
        name = "" if solving is None else f"method={solving.solver.name}"
        if solving is not None and not solving.solver.needs_calibration:
            name = f"transform=[{','.join(each.transform.name for each in chosen)}]"
            name = name if chosen else "scheme=auto"
        raise ConfigError(
            f"{name} needs calibration text, but calib.name={calib.name} with "
            f"calib.sequences={calib.sequences} has none: use calib=embedded or calib=c4, "
            "or method=rtn without a transform, which needs none."
        )
    if calib.length is not None and calib.length < 2:
        raise ConfigError(
            f"calib.length={calib.length} is too short for a window; use 2 or more tokens, "
            "or null for the model's context."
        )
    try:
        protocols.check(
            calib.protocol,
            protocols.CALIBRATION,
            path=calib.path,
            data_dir=data,
            documents=calib.documents,
        )
        if calib.chat_template:
            protocol = protocols.find(calib.protocol, protocols.CALIBRATION)
            chat.require_documents(protocol.id, protocol.of_documents)
            chat.require_template(model.folder, "calib.chat_template=true", model.name)
    except texts.AbsentText as error:
        raise MissingData(f"calib.protocol={calib.protocol}: {error}.") from error
    except (texts.ProtocolError, texts.TextError) as error:
        raise ConfigError(f"calib.protocol={calib.protocol}: {error}.") from error


def runtime(config: CellConfig, chosen: Sequence[Measuring], elsewhere: bool = False) -> None:
    """Check device, kernel, streaming and folders.

    elsewhere  the cell runs on another machine, of whose device and kernels nothing is known.
    """
    runtime = config.runtime
    if runtime.timeout_s is not None and runtime.timeout_s <= 0:
        raise ConfigError(
            f"runtime.timeout_s={runtime.timeout_s} leaves no time; use seconds above 0, or null."
        )
    if runtime.device != "cpu":
        _device_exists(runtime.device, elsewhere)
    if runtime.activations == "cuda" and not runtime.device.startswith("cuda"):
        raise ConfigError(
            f"runtime.activations=cuda, but runtime.device={runtime.device}: use cpu, disk or auto."
        )
    whole = [each.suite.name for each in chosen if not each.suite.streams]
    if runtime.stream == ALWAYS and whole:
        streaming = ",".join(each.suite.name for each in chosen if each.suite.streams)
        raise ConfigError(
            f"runtime.stream=always, but suite {whole[0]} needs the whole model in memory: measure "
            f"suite=[{streaming or 'perplexity'}] alone, or leave runtime.stream=auto."
        )
    if runtime.kernel not in ("auto", "reference") and not elsewhere:
        try:
            resolve_kernel(runtime.kernel, runtime.device)
        except (KernelUnavailable, ValueError) as error:
            raise ConfigError(f"runtime.kernel={runtime.kernel}: {error}") from error
    results = Path(config.paths.results)
    if os.path.isfile(results):
        raise ConfigError(f"paths.results={results} is a file: give a folder for the results.")


def _device_exists(device: str, elsewhere: bool) -> None:
    if not device.startswith("cuda"):
        raise ConfigError(f"runtime.device={device} is unknown; use cpu, cuda or cuda:0.")
    if elsewhere:
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"runtime.device={device}, but PyTorch sees no CUDA device here "
            f"(torch {torch.__version__}): use runtime=cpu, or install a CUDA build of PyTorch."
        )
