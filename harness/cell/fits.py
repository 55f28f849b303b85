"""Checks of a cell against its model's config, before any weight is read.

The facts come from transformers (quant.memory.shapes), found once and cached.
"""

from __future__ import annotations

from harness.cell.choices import Choices
from harness.data import protocols, texts
from harness.errors import ConfigError
from harness.models.model import QuantizedModel, StoredModel
from harness.models.streaming import model_facts
from quant.head import NAMES


def check(choices: Choices, model: StoredModel | QuantizedModel) -> None:
    """Raise ConfigError for a head that the model does not have, for a mixture of experts whose
    solver needs the full-precision inputs of each layer, and for windows longer than the context
    (of calibration or a suite).
    """
    facts, calib = model_facts(model), choices.calibration
    scheme = choices.scheme
    if choices.quantizes and scheme is not None and scheme.head and facts.shape.head is None:
        raise ConfigError(
            f"scheme.head cannot be used with model={model.name}: only a linear layer called "
            f"{' or '.join(NAMES)} after the blocks can be quantized as the head: leave "
            "scheme.head out."
        )
    solver = choices.solving.solver if choices.quantizes and choices.solving else None
    if solver is not None and solver.needs_reference and facts.shape.routed:
        raise ConfigError(
            f"method={solver.name} cannot be used with model={model.name}, a mixture of experts: "
            "it compares the inputs of every layer with those in the full-precision model, which "
            "may route a token to other experts; use method=gptq."
        )
    reads = calib is not None or any(each.suite.streams for each in choices.suites)
    if model.config.context is None and not reads:
        return  # no window depends on the model's context
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
    """A note for the plan on a model that does not support sdpa; None for others."""
    facts = model_facts(model)
    if facts.sdpa:
        return None
    return f"model={model.name}: attention is eager, because {facts.model_type} has no sdpa"
