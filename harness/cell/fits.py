"""Checks of a cell against its model's config, before any weight is read.

The facts come from transformers (quant.memory.shapes), found once and cached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cell.choices import Choices
from harness.data import protocols, texts
from harness.errors import ConfigError
from harness.models.model import QuantizedModel, StoredModel
from harness.models.streaming import model_facts
from quant.allocation import Allocation, AskedScheme
from quant.errors import SchemeError
from quant.head import EMBEDDINGS, NAMES, alone
from quant.scheme import Scheme
from quant.transforms.foreseen import input_refusal, no_rotation

if TYPE_CHECKING:
    from quant.budget import AnyScheme
    from quant.memory.shapes import ModelFacts, ModelShape


def check(choices: Choices, model: StoredModel | QuantizedModel) -> None:
    """Raise ConfigError for parts that do not fit the model.

    A head or embeddings that it does not have or that cannot be packed, a scheme to which its
    layers cannot be quantized, a transform of another shape of model, a mixture of experts whose
    solver compares the inputs of two models, and windows longer than its context (of calibration or
    a suite).
    """
    facts, calib = model_facts(model), choices.calibration
    scheme = choices.scheme
    if choices.quantizes and scheme is not None and scheme.head and facts.shape.head is None:
        raise ConfigError(
            f"scheme.head cannot be used with model={model.name}: only a linear layer called "
            f"{' or '.join(NAMES)} after the blocks can be quantized as the head: leave "
            "scheme.head out."
        )
    if choices.quantizes and scheme is not None and scheme.embeddings:
        _embeddings(scheme, facts.shape, choices, model.name)
    if choices.quantizes and scheme is not None:
        _widths(scheme, facts.shape, model.name)
        try:
            if isinstance(scheme, Allocation):
                scheme.require_possible(list(facts.linears.values()))
            else:
                scheme.require_layers(facts.linears)
        except SchemeError as error:
            raise ConfigError(f"scheme={scheme.name} on model={model.name}: {error}") from error
        _shapes(choices, scheme, facts.shape, model.name)
    _transforms(choices, facts, model.name)
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


def _embeddings(scheme: AskedScheme, shape: ModelShape, choices: Choices, model: str) -> None:
    """Refuse embeddings that cannot be packed, and those of a tied head alone."""
    if shape.table is None:
        raise ConfigError(
            f"scheme.embeddings cannot be used with model={model}: only one table called "
            f"{', '.join(EMBEDDINGS[:-1])} or {EMBEDDINGS[-1]}, whose rows are at most multiplied "
            "by embed_scale, can be quantized as the embeddings: leave scheme.embeddings out."
        )
    untied = any(each.transform.residual is not None for each in choices.transforms)
    if scheme.head is None and shape.tied and not untied:
        raise ConfigError(f"model={model} {alone(scheme)}")


def _transforms(choices: Choices, facts: ModelFacts, model: str) -> None:
    """Refuse transforms of another shape or structure of model, and budgets that it cannot meet."""
    widths = sorted({inputs for _, inputs in facts.shape.layers})
    for each in choices.transforms:
        spec, options, scheme = each.transform, each.options, choices.scheme
        if spec.prune is not None and (not isinstance(scheme, Scheme) or scheme.layers):
            assert scheme is not None  # transforms are followed by a solver
            raise ConfigError(
                f"transform={spec.name} removes parts of a model whose layers have one "
                f"scheme, and scheme={scheme.name} has several: use a scheme such as w4g64."
            )
        reason = (
            spec.refuses(options, facts.shape.hidden, widths)
            or spec.unfit(options, facts, scheme)  # type: ignore[arg-type]  # one if it prunes
            or input_refusal(spec, options, facts.inputs)
        )
        if reason is None and spec.residual is not None and facts.stream is not None:
            reason = no_rotation("this model", facts.stream)
        if reason is not None:
            asked = f", scheme={scheme.name}" if spec.prune is not None and scheme else ""
            raise ConfigError(
                f"transform={spec.name} on model={model}{asked}: {spec.name} {reason}."
            )


def _widths(scheme: AskedScheme, shape: ModelShape, model: str) -> None:
    """Refuse a scheme to which some layer cannot be quantized."""
    found: list[tuple[AnyScheme, int]]
    found = [(each, inputs) for each in scheme.every for _, inputs in shape.layers]
    if scheme.head is not None and shape.head is not None:
        found.append((scheme.head, shape.head[1]))
    if scheme.embeddings is not None and shape.table is not None:
        found.append((scheme.embeddings, shape.table[1]))
    for each, inputs in found:
        reason = each.refusal(inputs)
        if reason is not None:
            raise ConfigError(
                f"scheme={each.name} cannot be used with model={model}, which has layers with "
                f"{inputs} inputs: it {reason}."
            )


def _shapes(choices: Choices, scheme: AskedScheme, shape: ModelShape, model: str) -> None:
    """Refuse a method that cannot solve some layer of this shape."""
    solving = choices.solving
    assert solving is not None  # something quantizes
    for layer in dict.fromkeys(shape.layers):
        reason = solving.solver.refuses_shape(solving.options, scheme, layer)
        if reason is not None:
            raise ConfigError(
                f"method={solving.solver.name} scheme={scheme.name} cannot be used with "
                f"model={model}: {reason}."
            )


def attention_note(model: StoredModel | QuantizedModel) -> str | None:
    """A note for the plan on a model that does not support sdpa; None for others."""
    facts = model_facts(model)
    if facts.sdpa:
        return None
    return f"model={model.name}: attention is eager, because {facts.model_type} has no sdpa"
