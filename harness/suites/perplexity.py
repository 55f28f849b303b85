"""Perplexity by named protocols (harness.data.protocols)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from harness.data import protocols
from harness.data.config import DocumentsConfig
from harness.records.items import WINDOWS
from harness.report.columns import (
    ACCURACY,
    AgainstBits,
    AgainstPosition,
    FigureColumn,
    Place,
    SuiteTable,
)
from harness.report.published import beside_published
from harness.suites import reading
from harness.suites.base import Facts, Sample, Suite, SuiteContext, SuiteResult, at_least_one
from harness.suites.positions import BY_POSITION

if TYPE_CHECKING:
    from harness.config.schema import ModelConfig

NAME = "perplexity"


@dataclass
class Config:
    """The texts and how they are scored."""

    protocols: list[str] = MISSING  # names known to harness/data/protocols.py
    paths: dict[str, str] = field(default_factory=dict)  # protocol name -> local file or folder
    max_windows: int | None = None
    batch_size: int = 1
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)


def check(config: Config, facts: Facts) -> None:
    """Raise ConfigError for a text that is not available, or a number that is too small."""
    reading.check(config, facts, some=True)
    at_least_one(f"{facts.key}.batch_size", config.batch_size)


def complete(config: Config, _model: ModelConfig, _others: Sequence[Any]) -> Config:
    """The settings with each text once: experiments may name one twice for a small model."""
    return replace(config, protocols=list(dict.fromkeys(config.protocols)))


def remarks(config: Config) -> list[str]:
    """Sentences on texts that cannot be had, while others can."""
    # Local files are checked already, and relative ones are in a folder that is not known here.
    of_hub = replace(config, protocols=[n for n in config.protocols if n not in config.paths])
    return list(reading.lacking(of_hub, f"suite.{NAME}").values())


def samples(config: Config, _facts: Facts) -> list[Sample]:
    """The windows of each text: at most as many as protocol and settings say."""
    found = []
    for name in config.protocols:
        limits = (protocols.find(name).windows, config.max_windows)
        count = min((each for each in limits if each is not None), default=None)
        found.append(Sample(name, "perplexity", WINDOWS, count, share=False))
    return found


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Measure perplexity and negative log-likelihood of each protocol, and every window's score."""
    from harness.suites import scoring

    return scoring.run(context, config)


PUBLISHED = Place("published_perplexity", "Perplexity of {model} beside published", 11)
PLOT = AgainstBits("perplexity", "Perplexity against bits per weight", logarithmic=True, clip=12.0)
CURVE = AgainstPosition(
    BY_POSITION, "loss_by_position", "Loss against position in the context", "loss, nat a token"
)

SUITE = Suite(
    name=NAME,
    version=1,
    config=Config,
    complete=complete,
    run=run,
    check=check,
    remarks=remarks,
    inputs=reading.inputs,
    semantics=reading.semantics,
    samples=samples,
    streams=True,
    preload=("harness.suites.scoring",),
    table=SuiteTable(
        columns=(FigureColumn("perplexity", detail="ppl", plot=PLOT),),
        joins=ACCURACY,
        rank=10,
        compared=True,
        curves=(CURVE,),
        tables=(beside_published(PUBLISHED, NAME, (NAME,)),),
    ),
)
