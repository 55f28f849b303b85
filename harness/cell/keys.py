"""Content keys: the sha256 of everything that the figures of a stage depend on, and nothing else.

A stage is a suite, or the quantization that comes before them. Two runs that must give the same
figures have the same key, so a finished stage is never repeated; anything that could move a digit
(batch size, dtype, device, kernel, attention) is in the key, while how the work is carried out
(threads, time limits, folders, trackers, names of reports) is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from harness.cell.validation import selected_suites
from harness.config.schema import CalibConfig, CellConfig
from harness.data import protocols, texts
from harness.errors import ConfigError
from harness.models.checkpoints import METHOD, find_checkpoint
from harness.models.folders import file_sha256, model_fingerprint
from harness.records.environment import gpu, machine
from harness.records.record import SCHEMA_VERSION

QUANTIZATION = "quantization"

# Raise a number when a stage computes something else from the same input: its old records then
# stay on disk but no longer answer. Changelog:
#   1  first version of every stage
#   2  quantization: GPTQ on compiled kernels (rounds differently), triangular root of the Hessian
#   2  latency: static cache, bytes of the cache counted, speed-up instead of time ratio
STAGE_VERSIONS = {
    QUANTIZATION: 2,
    "perplexity": 1,
    "divergence": 1,
    "zeroshot": 1,
    "latency": 2,
    "kernels": 1,
}


@dataclasses.dataclass(frozen=True)
class StageKeys:
    """The keys of one cell; inputs are the hashes of the files that each stage reads."""

    cell: str
    stages: dict[str, str]
    semantic: dict[str, Any]
    inputs: dict[str, dict[str, str]]


def cell_keys(config: CellConfig) -> StageKeys | None:
    """Keys of the cell and of its stages in order; None while its model is not on this machine."""
    fingerprint = model_fingerprint(config.model)
    if fingerprint is None:
        return None
    calibration = calibration_inputs(config)
    semantic = cell_semantics(config)
    cell = digest({"cell": _content(semantic), "model": fingerprint, **calibration})
    execution = {"device": config.runtime.device, "kernel": kernel_of(config)}
    # Rounding to nearest runs on no kernel: the same key whatever the suites run on.
    rounded = {"device": execution["device"]}
    quantization = execution if config.method.name == "gptq" else rounded
    stages, inputs = {}, {}
    for name in stage_names(config):
        inputs[name] = {"model": fingerprint, **calibration, **suite_inputs(config, name)}
        stages[name] = digest(
            {
                "schema": SCHEMA_VERSION,
                "stage": name,
                "version": STAGE_VERSIONS[name],
                "cell": cell,
                "suite": suite_semantics(config, name),
                "inputs": inputs[name],
                "execution": execution if name != QUANTIZATION else quantization,
            }
        )
    return StageKeys(cell, stages, semantic, inputs)


def stage_names(config: CellConfig) -> list[str]:
    """The stages of a cell in order: the quantization, if its method needs one, and its suites."""
    solved = {"none": False, "random": False, "rtn": True, "gptq": True}.get(config.method.name)
    if solved is None:
        raise ConfigError(
            f"method.name={config.method.name} has no quantization stage: nothing here says "
            "whether it solves layers, so it would be measured in full precision."
        )
    return [QUANTIZATION] * solved + selected_suites(config)


def kernel_of(config: CellConfig) -> str:
    """The kernel that the cell runs on (GPTQ's sweep and the suites): what "auto" stands for here.

    On a machine with a compiler the first call builds the kernels. Raises KernelUnavailable for one
    that was asked for by name and is not there.
    """
    if config.method.name == "none" and find_checkpoint(config.model) is None:
        return "torch"
    from cuda_ext.ops import resolve_kernel

    return resolve_kernel(config.runtime.kernel, config.runtime.device)


def cell_semantics(config: CellConfig) -> dict[str, Any]:
    """The part of the configuration that decides the weights under test."""
    model = config.model
    semantic: dict[str, Any] = {
        "model": {
            "name": model.name,
            "source": model.source,
            "id": model.id,
            "revision": model.revision,
            "dtype": model.dtype,
            "context": model.context,
            "attention": model.attention,
            **(
                {"architecture": Path(model.architecture or "").name}
                if model.source == "dummy"
                else {}
            ),
        },
        "method": {"name": config.method.name},
        "scheme": dataclasses.asdict(config.scheme),
        "calib": None,
        "seed": config.seed,
    }
    if config.method.name == "gptq":
        semantic["method"] = dataclasses.asdict(config.method)
        semantic["calib"] = _without_folders(dataclasses.asdict(config.calib))
    checkpoint = find_checkpoint(model)
    if checkpoint is not None:
        semantic["method"] = {"name": METHOD}
        semantic["scheme"] = dataclasses.asdict(checkpoint.scheme)
        semantic["checkpoint"] = checkpoint.semantics()
    return semantic


def _content(semantic: dict[str, Any]) -> dict[str, Any]:
    """Without where the model came from: the hash of its files says what it is."""
    places = ("source", "id", "revision", "architecture")
    model = {key: value for key, value in semantic["model"].items() if key not in places}
    return {**semantic, "model": model}


def suite_semantics(config: CellConfig, name: str) -> dict[str, Any]:
    """The configuration of one suite, folders reduced to file names."""
    if name == QUANTIZATION:
        return {}
    settings = _without_folders(dataclasses.asdict(getattr(config.suite, name)))
    if name in ("perplexity", "divergence"):
        settings["paths"] = {
            k: v for k, v in settings["paths"].items() if k in settings["protocols"]
        }
    return settings


def calibration_inputs(config: CellConfig) -> dict[str, str]:
    """Hash of the calibration text; empty when the method reads none."""
    if config.method.name != "gptq":
        return {}
    calib: CalibConfig = config.calib
    protocol = protocols.find(calib.protocol, protocols.CALIBRATION)
    return {"calibration": _text_hash(protocol, calib.path, config.paths.data)}


def suite_inputs(config: CellConfig, name: str) -> dict[str, str]:
    """Hashes of the texts, task files or machine that a suite's figures depend on."""
    found: dict[str, str] = {}
    if name in ("perplexity", "divergence"):
        suite = getattr(config.suite, name)
        for each in suite.protocols:
            path = suite.paths.get(each)
            found[f"text {each}"] = _text_hash(protocols.find(each), path, config.paths.data)
    if name == "zeroshot" and config.suite.zeroshot is not None:
        for task, path in config.suite.zeroshot.files.items():
            found[f"task {task}"] = file_sha256(texts.locate(path, config.paths.data))
        if any(task.startswith("embedded") for task in config.suite.zeroshot.tasks):
            found["stories"] = _generator_hash()
    if name in ("latency", "kernels"):  # a timing belongs to the machine it was taken on
        runtime = config.runtime
        threads = runtime.threads if runtime.device == "cpu" else None
        found["machine"] = digest([machine(), gpu(runtime.device), threads])
    return found


def digest(value: Any) -> str:
    """sha256 of canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _text_hash(protocol: protocols.Protocol, path: str | None, data: str | None) -> str:
    """Hash of what a protocol reads: a local file, our generator, or the pinned file of the hub."""
    if protocol.source == "embedded":
        content = _generator_hash()
    elif path is not None:
        file = texts.locate(path, data)
        if protocol.source in texts.HUB_TEXTS:
            file = texts.local_file(protocol.source, file)
        content = file_sha256(file)
    else:
        text = texts.HUB_TEXTS[protocol.source]
        content = f"{text.dataset}@{text.revision}/{text.file}"
    return digest([protocol.id, protocol.version, content])


def _generator_hash() -> str:
    """sha256 of the sources of the story generator."""
    folder = Path(__file__).parents[1] / "embedded"
    names = ("stories.py", "lexicon.py")
    return digest([file_sha256(folder / name) for name in names if (folder / name).is_file()])


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Paths as file names: where a file lies does not change what is in it."""
    cleaned = dict(settings)
    for key in ("path",):
        if cleaned.get(key) is not None:
            cleaned[key] = Path(cleaned[key]).name
    for key in ("paths", "files"):
        if key in cleaned:
            cleaned[key] = {name: Path(path).name for name, path in cleaned[key].items()}
    return cleaned
