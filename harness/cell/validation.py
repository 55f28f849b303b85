"""Cross-field validation: what is impossible is said in one sentence before anything is loaded.

Types and key names are checked by OmegaConf against harness/config/schema.py; this module checks
meaning. Every message names the key, its value and what to write instead.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

from harness.config.schema import CellConfig, KernelsConfig, MethodConfig, ModelConfig, SchemeConfig
from harness.data import protocols, texts
from harness.errors import ConfigError
from harness.models import dummy
from harness.models.checkpoints import find_checkpoint
from harness.models.folders import model_folder
from harness.models.streaming import ALWAYS, STREAMING
from harness.suites import zeroshot_tasks
from quant.scheme import Scheme, SchemeError

METHODS = ("none", "rtn", "gptq", "random")
SOURCES = ("embedded", "hub", "local", "dummy")
DTYPES = ("float32", "float16", "bfloat16")
ATTENTION = ("sdpa", "eager")
GROUP_GRIDS = ("current", "stale")
TRACKERS = ("none", "wandb")
TIMING_SUITES = ("latency", "kernels")
ACTIVATIONS = ("auto", "cuda", "cpu", "disk")
STREAM = ("auto", "always", "never")
# Also the order in which they run.
SUITES = ("perplexity", "divergence", "zeroshot", "latency", "kernels")
NOT_QUANTIZED = 16  # bits


def validate(config: CellConfig) -> None:
    """Raise ConfigError for the first thing that cannot work; reads no weights."""
    _choices(config)
    shape = _model_shape(config.model)  # a wrong model comes first: all else depends on it
    _scheme_and_method(config.method, config.scheme)
    _dummy(config)
    _not_quantized_twice(config)
    _suites(config)
    if config.method.name == "gptq":
        _calibration(config)
    _runtime(config)
    if shape is not None:
        _latency_fits(config, shape)


def make_scheme(config: SchemeConfig) -> Scheme | None:
    """The quant.Scheme of a cell; None when bits=16. ConfigError for one that cannot exist."""
    if config.bits == NOT_QUANTIZED:
        if config != SchemeConfig(bits=NOT_QUANTIZED):
            raise ConfigError(
                "scheme.bits=16 is not quantized and has no groups, symmetry, levels or grid: "
                "use scheme=w16 alone, or a scheme of 8 bits or less."
            )
        return None
    try:
        return Scheme(**dataclasses.asdict(config))
    except SchemeError as error:
        raise ConfigError(f"scheme: {error}") from error


def selected_suites(config: CellConfig) -> list[str]:
    """Names of the suites that a cell runs, in their order; ConfigError for one nobody runs."""
    for field in dataclasses.fields(config.suite):
        if getattr(config.suite, field.name) is not None and field.name not in SUITES:
            raise ConfigError(
                f"suite {field.name} is not one that runs: choose from {', '.join(SUITES)}."
            )
    return [name for name in SUITES if getattr(config.suite, name) is not None]


def _choices(config: CellConfig) -> None:
    for key, value, allowed in (
        ("model.source", config.model.source, SOURCES),
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.attention", config.model.attention, ATTENTION),
        ("method.name", config.method.name, METHODS),
        ("method.group_grid", config.method.group_grid, GROUP_GRIDS),
        ("tracker.name", config.tracker.name, TRACKERS),
        ("runtime.activations", config.runtime.activations, ACTIVATIONS),
        ("runtime.stream", config.runtime.stream, STREAM),
    ):
        if value not in allowed:
            raise ConfigError(f"{key}={value} is unknown; choose one of {', '.join(allowed)}.")
    for key, number, least in (
        ("seed", config.seed, 0),
        ("calib.seed", config.calib.seed, 0),
        ("method.block_size", config.method.block_size, 1),
        ("method.damping", config.method.damping, 0),
        ("model.context", config.model.context, 2),
        ("runtime.threads", config.runtime.threads, 1),
    ):
        if number is not None and number < least:
            raise ConfigError(f"{key}={number} is too small; use {least} or more.")


def _scheme_and_method(method: MethodConfig, scheme: SchemeConfig) -> None:
    quantized = make_scheme(scheme) is not None
    if method.name == "none" and quantized:
        raise ConfigError(
            f"method=none leaves the weights alone, but the scheme has {scheme.bits} bits: "
            "use scheme=w16, or method=rtn or method=gptq."
        )
    if method.name != "none" and not quantized:
        raise ConfigError(
            f"method={method.name} needs something to quantize to, but scheme.bits=16 is full "
            "precision: use a scheme such as w4, or method=none."
        )
    if method.name != "gptq":
        for key in _gptq_settings(method):
            raise ConfigError(
                f"method.{key}={getattr(method, key)} is read by gptq alone and method.name="
                f"{method.name} would ignore it: leave it out, or use method=gptq."
            )
    steps = [method.damping, *method.damping_ladder]
    if any(after <= before for before, after in pairwise(steps)):
        raise ConfigError(
            f"method.damping_ladder={list(method.damping_ladder)} does not rise from "
            f"method.damping={method.damping:g}: list larger and larger shares, such as [0.1, 1.0]."
        )
    if method.static_groups and method.group_grid == "stale":
        raise ConfigError(
            "method.static_groups=true makes all group grids in advance, so "
            "method.group_grid=stale would have no effect: drop one of the two."
        )


def _not_quantized_twice(config: CellConfig) -> None:
    found = find_checkpoint(config.model)
    if found is not None and config.method.name != "none":
        raise ConfigError(
            f"model={config.model.name} is quantized already ({found.scheme.name}, {found.format}, "
            f"producer {found.producer}): use method=none scheme=w16 to measure it as it is, or "
            f"give its full-precision original to method={config.method.name}."
        )


def _dummy(config: CellConfig) -> None:
    """Random weights can be timed and nothing else."""
    method = config.method.name
    if not dummy.is_dummy(config.model):
        if method == dummy.RANDOM:
            raise ConfigError(
                f"method=random makes weights up, but model={config.model.name} has its own: use "
                "model=dummy, or method=rtn or method=gptq."
            )
        if config.model.architecture is not None:
            raise ConfigError(
                f"model.architecture={config.model.architecture} is read with model=dummy alone "
                f"and model={config.model.name} would ignore it: leave it out."
            )
        return
    if "/" in config.model.name:
        raise ConfigError(
            f"model.name={config.model.name} holds a path: add model.name=NAME for the tables."
        )
    if method not in ("none", dummy.RANDOM):
        raise ConfigError(
            f"method={method} needs weights to quantize, and model=dummy has none: use "
            "method=random for packed weights, or method=none scheme=w16."
        )
    for name in selected_suites(config):
        if name not in TIMING_SUITES:
            raise ConfigError(
                f"suite {name} measures accuracy, and the weights of model=dummy are random: use "
                f"suite=[{','.join(TIMING_SUITES)}] or one of them."
            )


def _gptq_settings(method: MethodConfig) -> list[str]:
    """Fields that differ from their defaults and that only GPTQ reads."""
    plain = MethodConfig()
    return [
        field.name
        for field in dataclasses.fields(MethodConfig)
        if field.name != "name" and getattr(method, field.name) != getattr(plain, field.name)
    ]


def _calibration(config: CellConfig) -> None:
    calib = config.calib
    if calib.protocol == "none" or calib.sequences < 1:
        raise ConfigError(
            f"method=gptq needs calibration text, but calib.name={calib.name} with "
            f"calib.sequences={calib.sequences} has none: use calib=embedded or calib=c4, "
            "or method=rtn, which needs none."
        )
    if calib.length is not None and calib.length < 2:
        raise ConfigError(
            f"calib.length={calib.length} is too short for a window; use 2 or more tokens, "
            "or null for the model's context."
        )
    _text("calib.protocol", calib.protocol, protocols.CALIBRATION, calib.path, config)


def _text(key: str, protocol: str, use: str, path: str | None, config: CellConfig) -> None:
    """A text protocol that exists and whose file is there (or can be fetched)."""
    try:
        protocols.check(protocol, use, path=path, data_dir=config.paths.data)
    except (protocols.ProtocolError, texts.TextError) as error:
        raise ConfigError(f"{key}={protocol}: {error}.") from error


def _suites(config: CellConfig) -> None:
    if not selected_suites(config):
        raise ConfigError(
            f"suite is empty, so there is nothing to measure: choose from {', '.join(SUITES)}, "
            "for example suite=[perplexity,latency]."
        )
    for name in ("perplexity", "divergence"):
        if getattr(config.suite, name) is not None:
            _texts(config, name)
    if config.suite.zeroshot is not None:
        _zeroshot(config)
    latency = config.suite.latency
    if latency is not None:
        for key in ("prompt_tokens", "decode_tokens", "repeats"):
            _at_least_one(f"suite.latency.{key}", getattr(latency, key))

    kernels = config.suite.kernels
    if kernels is not None:
        _kernels(kernels)


def _texts(config: CellConfig, which: str) -> None:
    """The texts of a suite that reads windows of them."""
    suite, key = getattr(config.suite, which), f"suite.{which}"
    if not suite.protocols:
        raise ConfigError(
            f"{key}.protocols is empty: name a text, for example {key}.protocols=[wikitext2]."
        )
    for name in suite.paths:
        if name not in suite.protocols:
            raise ConfigError(
                f"{key}.paths.{name} is a file for a text that is not measured: add "
                f"{name} to {key}.protocols=[{','.join(suite.protocols)}], or drop it."
            )
    _at_least_one(f"{key}.batch_size", getattr(suite, "batch_size", None))
    _at_least_one(f"{key}.max_windows", suite.max_windows)
    for name in suite.protocols:
        path = suite.paths.get(name)
        _text(f"{key}.protocols", name, protocols.EVALUATION, path, config)


def _kernels(suite: KernelsConfig) -> None:
    if not suite.batches:
        raise ConfigError("suite.kernels.batches is empty: give rows of activations, as in [1,16].")
    for batch in suite.batches:
        _at_least_one("suite.kernels.batches", batch)
    if suite.seconds <= 0:
        raise ConfigError(
            f"suite.kernels.seconds={suite.seconds} leaves no time; use seconds above 0."
        )


def _zeroshot(config: CellConfig) -> None:
    suite = config.suite.zeroshot
    assert suite is not None
    if not suite.tasks and not suite.files:
        raise ConfigError(
            "suite.zeroshot.tasks is empty: name a task, for example suite.zeroshot.tasks=[piqa]."
        )
    _at_least_one("suite.zeroshot.batch_size", suite.batch_size)
    _at_least_one("suite.zeroshot.limit", suite.limit)
    try:
        zeroshot_tasks.check_tasks(suite.tasks, suite.files, config.paths.data)
    except (zeroshot_tasks.TaskError, texts.TextError) as error:
        raise ConfigError(f"suite.zeroshot: {error}.") from error


def _at_least_one(key: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"{key}={value} is too small; use 1 or more.")


def _runtime(config: CellConfig) -> None:
    runtime = config.runtime
    if runtime.timeout_s is not None and runtime.timeout_s <= 0:
        raise ConfigError(
            f"runtime.timeout_s={runtime.timeout_s} leaves no time; use seconds above 0, or null."
        )
    if runtime.device != "cpu":
        _device_exists(runtime.device)
    if runtime.activations == "cuda" and not runtime.device.startswith("cuda"):
        raise ConfigError(
            f"runtime.activations=cuda, but runtime.device={runtime.device}: use cpu, disk or auto."
        )
    whole = [name for name in selected_suites(config) if name not in STREAMING]
    if runtime.stream == ALWAYS and whole:
        raise ConfigError(
            f"runtime.stream=always, but suite {whole[0]} needs the whole model in memory: measure "
            f"suite=[{','.join(STREAMING)}] alone, or leave runtime.stream=auto."
        )
    if runtime.kernel not in ("auto", "reference"):
        from cuda_ext.ops import KernelUnavailable, resolve_kernel

        try:
            resolve_kernel(runtime.kernel, runtime.device)
        except (KernelUnavailable, ValueError) as error:
            raise ConfigError(f"runtime.kernel={runtime.kernel}: {error}") from error
    results = Path(config.paths.results)
    if results.exists() and not results.is_dir():
        raise ConfigError(f"paths.results={results} is a file: give a folder for the results.")


def _device_exists(device: str) -> None:
    if not device.startswith("cuda"):
        raise ConfigError(f"runtime.device={device} is unknown; use cpu, cuda or cuda:0.")
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"runtime.device={device}, but PyTorch sees no CUDA device here "
            f"(torch {torch.__version__}): use runtime=cpu, or install a CUDA build of PyTorch."
        )


def _latency_fits(config: CellConfig, shape: dict[str, object]) -> None:
    latency = config.suite.latency
    context = shape.get("max_position_embeddings")
    if latency is None or not isinstance(context, int):
        return
    needed = latency.prompt_tokens + latency.decode_tokens
    if needed > context:
        raise ConfigError(
            f"suite.latency needs {needed} tokens (prompt_tokens={latency.prompt_tokens} + "
            f"decode_tokens={latency.decode_tokens}), but model={config.model.name} has a context "
            f"of {context}: make one of the two smaller."
        )


def _model_shape(model: ModelConfig) -> dict[str, object] | None:
    """config.json of the model, the text part of a multimodal one; None while it is not here."""
    if dummy.is_dummy(model):
        return dummy.architecture(model).to_dict()
    folder = model_folder(model)
    if folder is None:
        return None
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    nested = shape.get("text_config")
    return nested if isinstance(nested, dict) else shape
