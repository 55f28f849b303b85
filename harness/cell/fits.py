"""What does not fit the model that a cell names: said before any weight is read.

It takes what transformers knows of the model (quant.memory.shapes), found once and kept.
"""

from __future__ import annotations

from harness.cell.choices import Choices
from harness.data import protocols, texts
from harness.errors import ConfigError
from harness.models.model import QuantizedModel, StoredModel
from harness.models.streaming import model_facts


def check(choices: Choices, model: StoredModel | QuantizedModel) -> None:
    """Windows of calibration and of suites against the model's context; ConfigError."""
    facts, calib = model_facts(model), choices.calibration
    reads = calib is not None or any(each.suite.streams for each in choices.suites)
    if model.config.context is None and not reads:
        return  # nothing is cut to the model's context
    try:
        context = protocols.context_length(facts, model.config.context)
    except texts.ProtocolError as error:
        raise ConfigError(f"model={model.name}: {error}.") from error
    if calib is not None and calib.length is not None and calib.length > context:
        raise ConfigError(
            f"calib.length={calib.length} is more than the {context} tokens of the context of "
            f"model={model.name}: use {context} or fewer, or null for all of it."
        )


def attention_note(model: StoredModel | QuantizedModel) -> str | None:
    """What the plan says of a model that cannot run with sdpa."""
    facts = model_facts(model)
    if facts.sdpa:
        return None
    return f"model={model.name}: attention is eager, because {facts.model_type} has no sdpa"
