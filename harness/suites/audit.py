"""Audit: what the codes of a quantized checkpoint show, layer by layer, against its base."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.data import protocols, texts
from harness.data.config import CalibConfig, DocumentsConfig
from harness.data.inputs import calibration_settings, protocol_hash
from harness.errors import ConfigError
from harness.models import gguf
from harness.models.folders import check_folder, folder_fingerprint, text_config
from harness.records.hashes import file_sha256
from harness.records.record import Metric
from harness.report.columns import FigureColumn, Place, Shown, SuiteTable
from harness.report.rows import Figure, Row
from harness.report.table import Cell, Note, significant
from harness.suites import reading
from harness.suites.base import Facts, Suite, SuiteContext, SuiteResult
from harness.suites.divergence import mean_cell, rate_cell
from quant.pruning import PRUNED
from quant.transforms.base import ALWAYS

if TYPE_CHECKING:
    from quant.audit.run import Audit, LayerAudit

MEDIAN = "median of layers"
LAYERS = "layers"


@dataclass
class Config:
    """The base, the text whose Hessians are used, and the texts on which the whole is compared.

    base       folder of the full-precision model; None: the model of the cell.
    protocols  texts on which the divergence of checkpoint and re-solved model is measured, with
               `paths`, `max_windows` and `documents` as in suite=divergence; none: not measured.
    """

    base: str | None = None
    calib: CalibConfig = field(default_factory=CalibConfig)
    protocols: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    max_windows: int | None = 16
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)


def check(config: Config, facts: Facts) -> None:
    """Raise ConfigError unless the base is a model folder and the text can be had.

    Also for layers that are not those of the base, as of a model of which parts are removed, and of
    a GGUF file that is audited unless its tensors are those of the base.
    """
    _check_layers(facts)
    file = _rounded(facts.file)
    if config.base is not None:
        _check_base(Path(config.base), f"{facts.key}.base", file)
    elif file is not None or not facts.has_original:
        raise ConfigError(
            f"{facts.key}.base is missing: name the folder of the full-precision model that "
            f"{facts.model} was made from, as in `bitsweep audit CHECKPOINT --base FOLDER`."
        )
    calib = config.calib
    if calib.protocol == "none":
        raise ConfigError(
            f"{facts.key} needs a text for its Hessians, but calib={calib.name} has none: choose "
            "the text that the checkpoint was calibrated on, such as calib=c4, calib=wikitext2 or "
            "calib=text calib.path=FILE."
        )
    try:
        protocols.check(
            calib.protocol,
            protocols.CALIBRATION,
            path=calib.path,
            data_dir=facts.data_dir,
            option="calib.path",
            documents=calib.documents,
        )
    except (texts.ProtocolError, texts.TextError) as error:
        raise ConfigError(f"{facts.key}: {error}.") from error
    if config.base is not None:
        _check_length(config.base, calib.length, facts)
    if config.protocols:
        reading.check(config, facts)


def _check_layers(facts: Facts) -> None:
    if PRUNED in (facts.shape or {}):
        raise ConfigError(
            f"{facts.key}: model={facts.model}: parts of the model were removed before it was "
            f"quantized ({PRUNED} in its config.json), so its layers are not those of the base: "
            "audit an artifact of the whole model."
        )
    for transform, options in facts.transforms:
        if transform.prune is not None:
            raise ConfigError(
                f"{facts.key}: transform={transform.name} removes parts of the model, so its "
                "layers are not those of the base: leave suite=audit or the transform out."
            )
        if transform.keeps(options) == ALWAYS:
            raise ConfigError(
                f"{facts.key}: transform={transform.name} is kept in front of layers, so their "
                "weights are not in the coordinates of the base: leave suite=audit or the "
                "transform out."
            )


def _check_base(base: Path, what: str, file: Path | None) -> None:
    check_folder(base, what)
    if file is not None:
        from quant.audit.gguf import check_pair
        from quant.errors import ArtifactError

        try:
            check_pair(file, base)
        except ArtifactError as error:
            raise ConfigError(str(error)) from error


def _check_length(base: str, length: int | None, facts: Facts) -> None:
    most = protocols.stated_length(SimpleNamespace(**text_config(Path(base))))
    if isinstance(length, int) and isinstance(most, int) and length > most:
        raise ConfigError(
            f"{facts.key}: windows of {length} tokens (calib.length, --length) are longer than the "
            f"{most} positions of {base}: choose at most {most}."
        )


def _rounded(file: Path | None) -> Path | None:
    """The GGUF file, if it has tensors of few bits; ConfigError for one that cannot be read."""
    if file is None:
        return None
    from quant.checkpoint.gguf.file import read_gguf
    from quant.errors import ArtifactError

    try:
        kinds = read_gguf(file).weights_by_kind()
    except ArtifactError as error:
        raise ConfigError(str(error)) from error
    return file if gguf.rounded({"weights": kinds}) else None


def inputs(config: Config, facts: Facts) -> dict[str, str]:
    """Hashes of the text, of the base's files, if it is not the model of the cell, and of a GGUF
    file: the folder that is made of it does not say the types of its tensors.
    """
    calib = config.calib
    protocol = protocols.find(calib.protocol, protocols.CALIBRATION)
    found = {"audit text": protocol_hash(protocol, calib.path, facts.data_dir)}
    if config.base is not None:
        found["base"] = folder_fingerprint(Path(config.base))
    if facts.file is not None:
        found["file"] = file_sha256(facts.file)
    return found | reading.inputs(config, facts)


def semantics(config: Config) -> dict[str, Any]:
    """The settings, with paths reduced to names."""
    calib = calibration_settings(config.calib)
    base = None if config.base is None else Path(config.base).name
    return {**reading.semantics(config), "base": base, "calib": calib}


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Audit every linear layer of the blocks, then the whole model; the samples are the layers."""
    import torch

    from harness.data import vocabulary
    from harness.suites.audit_whole import compare_whole
    from quant.audit.run import Resolved, audit
    from quant.checkpoint.source import CheckpointSource

    checkpoint = context.packed or _rounded(context.file)
    if checkpoint is None:
        return SuiteResult([_nothing_to_audit(context.model)])
    base = Path(config.base) if config.base else context.source
    assert base is not None  # `check`
    dtype = getattr(torch, context.dtype)
    with CheckpointSource(base, dtype, context.device, trust_remote_code=False) as source:
        length = protocols.context_length(source.model.config, context.context_length)
        windows = protocols.calibration_windows(
            config.calib, context.tokenizer, length, context.data_dir
        )
        vocabulary.check_windows(windows, context.tokenizer, source.model)
        resolved: Resolved | None = {} if config.protocols else None
        found = audit(
            checkpoint,
            source,
            base,
            windows.windows,
            context.progress,
            resolved,
            context.activations,
            context.scratch,
        )
    whole = compare_whole(context, config, base, resolved) if resolved is not None else []
    read = {"audit tokens": windows.token_hash, "audit source": windows.source}
    return SuiteResult(metrics(found) + whole, read, [_sample(each) for each in found.layers])


def _nothing_to_audit(model: Any) -> Metric:
    """The count of layers of a full-precision model, none of which is quantized."""
    from quant.audit.verdict import NOT_QUANTIZED
    from quant.blocks import find_blocks, linear_layers

    count = sum(len(linear_layers(block)) for block in find_blocks(model).modules)
    return Metric(
        name=LAYERS, task=NOT_QUANTIZED, value=count, unit="layers", n=count, n_unit="layers"
    )


def metrics(found: Audit) -> list[Metric]:
    """Counts of verdicts, and medians over the quantized layers."""
    from quant.audit.layer import Evidence

    counts = Counter(each.verdict.name for each in found.layers)
    claim = {
        "claim": found.claim.method or "",
        "producer": found.claim.producer,
        "format": found.claim.format,
        "tokens": str(found.tokens),
        "differing": ", ".join(f"{n} ({100 * s:.0f} %)" for n, s in found.differing.items()),
    }
    said = "; ".join([*found.claim.said, *found.said])
    claim |= {key: text for key, text in (("types", found.claim.types), ("said", said)) if text}
    claim["verdicts"] = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    total = len(found.layers)
    every = [
        Metric(
            name=LAYERS, task=name, value=count, unit="layers", n=total, n_unit="layers",
            notes=claim,
        )
        for name, count in counts.most_common()
    ]  # fmt: skip
    measured = [each.evidence for each in found.layers if each.evidence is not None]
    seen = [each for each in measured if isinstance(each, Evidence)]
    gains = [each.gain for each in seen if each.gain is not None]
    ratios = {
        "error": [each.error for each in measured],
        "gain": gains,
        "over_rounding": [e.error / e.rounding_error for e in seen if e.rounding_error],
        "over_solver": [e.error / e.solver_error for e in seen if e.solver_error],
    }
    return every + [
        Metric(
            name=name,
            task=MEDIAN,
            value=median(values),
            unit="fraction" if name in ("error", "gain") else "ratio",
            n=len(values),
            n_unit="layers",
            quantiles={"p0": min(values), "p100": max(values)},
            notes=claim,
        )
        for name, values in ratios.items()
        if values
    ]


def _sample(layer: LayerAudit) -> dict[str, Any]:
    found = dataclasses.asdict(layer)
    evidence = found.pop("evidence")
    verdict = found.pop("verdict")
    gain = getattr(layer.evidence, "gain", None)
    return {**found, "verdict": verdict["name"], "why": verdict["why"], "gain": gain} | {
        **(evidence or {})
    }


def _ratio(figure: Figure) -> Cell:
    return Cell(significant(figure.value), figure.value)


def _percent(figure: Figure) -> Cell:
    return Cell(f"{100 * figure.value:.0f}", figure.value)


def _share(figure: Figure) -> Cell:
    return Cell(significant(100 * figure.value), figure.value)


def _verdicts(figure: Figure) -> Cell:
    return Cell(figure.note("verdicts"), figure.note("verdicts"))


def _notes(rows: list[Row], shown: list[Shown]) -> list[Note]:  # noqa: ARG001
    errors = Note(
        "Errors are tr(E H Eᵀ) of the text's Hessians, medians over layers: beside rounding to "
        "nearest and beside GPTQ on the same grids. Gain: the share of the way from the one to "
        "the other. docs/audit.md says what the verdicts mean."
    )
    solved = tuple(each.column.name for each in shown if each.key[2].startswith("resolved"))
    said = "If solved: the base with GPTQ's codes on the checkpoint's grids, at equal bytes."
    return [errors, Note(said, solved)] if solved else [errors]  # no columns would be any


TABLE = SuiteTable(
    columns=(
        FigureColumn("error", "error", "%", _share, task=MEDIAN, optional=True),
        FigureColumn("gain", "gain", "%", _percent, task=MEDIAN, optional=True),
        FigureColumn("over_rounding", "error", "÷ rounding", _ratio, task=MEDIAN, optional=True),
        FigureColumn("over_solver", "error", "÷ solver", _ratio, task=MEDIAN, optional=True),
        FigureColumn(
            "over_solver", "layers", "", _verdicts, task=MEDIAN, name="verdicts", optional=True
        ),
        FigureColumn("kl_divergence", "KL base‖it", "nat, mean", mean_cell, optional=True),
        FigureColumn("top1_flip_rate", "flips", "%", rate_cell, optional=True),
        FigureColumn(
            "resolved_kl_divergence", "KL if solved", "nat, mean", mean_cell, optional=True
        ),
        FigureColumn("resolved_top1_flip_rate", "flips if solved", "%", rate_cell, optional=True),
    ),
    joins=Place("audit", "Audit of {model}", 40),
    notes=_notes,  # type: ignore[arg-type]
)

SUITE = Suite(
    name="audit",
    version=2,
    config=Config,
    run=run,
    check=check,
    inputs=inputs,
    semantics=semantics,
    loads=False,
    table=TABLE,
)
