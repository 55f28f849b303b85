"""What of a model a fused step (cuda_ext.step) takes, as each family describes its models.

Models are recognised by their modules, not by their names. Whatever a module does besides (a
multiplier of residuals, another order) shows in the logits: quant.decode.choose compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cuda_ext.step import WIDTH_STEP, Activation, Norm, Place, Step
from quant.linear import QuantLinear

# Kinds of rotations whose angles change with the number of tokens (transformers' rope_type).
BY_LENGTH = ("dynamic", "longrope")


_T = TypeVar("_T")


class Unsupported(Exception):
    """Why a model cannot be decoded in some mode, one clause."""


@dataclass(frozen=True)
class LayerParts:
    """Modules and settings of one layer.

    norm, feed_norm       before attention, and before the feed-forward part.
    matrices              by place.
    width                 of a head.
    scale                 of query times key.
    parallel              whether both parts read the layer's input.
    query_norm, key_norm  of every head, where there are some.
    """

    norm: Any
    feed_norm: Any
    matrices: Mapping[Place, Any]
    width: int
    scale: float
    activation: Activation
    parallel: bool = False
    query_norm: Any = None
    key_norm: Any = None


@dataclass(frozen=True)
class Description:
    """Modules and settings of one decoder. What its layers have alike is found in them; Unsupported
    if they differ.

    norm            before the head.
    head            the matrix that makes logits.
    set_positions   (step, positions): tells a step how the model knows that many positions;
                    Unsupported if the step cannot do so.
    most_positions  that it knows; None: any number.
    embedding_norm  of the embeddings, before the first layer.
    """

    layers: Sequence[LayerParts]
    norm: Any
    head: Any
    set_positions: Callable[[Step, int], None]
    most_positions: int | None = None
    embedding_norm: Any = None

    @property
    def matrices(self) -> list[Any]:
        """Those inside the layers."""
        return [linear for layer in self.layers for linear in layer.matrices.values()]

    @property
    def norms(self) -> list[Any]:
        """Those of whole rows."""
        pairs = [norm for layer in self.layers for norm in (layer.norm, layer.feed_norm)]
        return [self.norm, *pairs, *([self.embedding_norm] if self.embedding_norm else [])]

    @property
    def heads_norms(self) -> list[Any]:
        """Those of every head."""
        pairs = [norm for layer in self.layers for norm in (layer.query_norm, layer.key_norm)]
        return [norm for norm in pairs if norm is not None]

    @property
    def width(self) -> int:
        """Of a head."""
        return same_of_all([layer.width for layer in self.layers], "the width of a head")

    @property
    def scale(self) -> float:
        """Of query times key."""
        return same_of_all([layer.scale for layer in self.layers], "scale")

    @property
    def activation(self) -> Activation:
        return same_of_all([layer.activation for layer in self.layers], "activation")

    @property
    def parallel(self) -> bool:
        """Whether both parts of a layer read its input."""
        return same_of_all(
            [layer.parallel for layer in self.layers], "what their second part reads"
        )

    @property
    def heads(self) -> int:
        return outputs_of(self.layers[0], Place.QUERY) // self.width

    @property
    def kv_heads(self) -> int:
        return outputs_of(self.layers[0], Place.KEY) // self.width

    @property
    def feed(self) -> int:
        """Inputs of the last matrix of a layer."""
        return outputs_of(self.layers[0], Place.UP)

    @property
    def epsilon(self) -> float:
        return _epsilon(self.norm)

    @property
    def all_packed(self) -> bool:
        """Whether every matrix inside the layers is packed."""
        return all(isinstance(linear, QuantLinear) for linear in self.matrices)


def outputs_of(layer: LayerParts, place: Place) -> int:
    """The outputs of a place, which one matrix may give with those of others."""
    joined = layer.matrices.get(Place.QUERY_KEY_VALUE)
    if joined is not None and place in (Place.QUERY, Place.KEY, Place.VALUE):
        return int(joined.out_features) // 3
    return int(layer.matrices[place].out_features)


def norm_of(module: Any) -> Norm:
    """The tensors of a norm; Unsupported unless it is an RMSNorm or a LayerNorm with a bias."""
    held = {name: tensor.detach() for name, tensor in module.named_parameters()}
    if type(module) is nn.LayerNorm and [*held] == ["weight", "bias"]:
        return Norm(held["weight"], held["bias"])
    if hasattr(module, "variance_epsilon") and [*held] == ["weight"]:
        return Norm(held["weight"])
    lacking = " without weight and bias" * isinstance(module, nn.LayerNorm)
    raise Unsupported(f"its norm is {type(module).__name__}{lacking}, not an RMSNorm or LayerNorm")


def require_fit(model: Any, description: Description) -> None:
    """Raise Unsupported for what a step cannot take of a model that a family describes."""
    if model.dtype != torch.float32:
        raise Unsupported(f"its activations are {model.dtype}, and the step's float32")
    for norm in (*description.norms, *description.heads_norms):
        norm_of(norm)
    if len({_epsilon(norm) for norm in (*description.norms, *description.heads_norms)}) > 1:
        raise Unsupported("its norms have different epsilons")
    for linear in (*description.matrices, description.head):
        _require_matrix(linear)
    places = (Place.QUERY, Place.KEY, Place.UP)
    if len({tuple(outputs_of(layer, at) for at in places) for layer in description.layers}) > 1:
        raise Unsupported("its layers differ in size")
    if description.width % WIDTH_STEP:
        raise Unsupported(f"a head is {description.width} wide, no multiple of {WIDTH_STEP}")


def require_children(module: Any, names: set[str], family: str) -> None:
    """Raise Unsupported unless a module has the children of a family's."""
    found = {name for name, _ in module.named_children()}
    if found != names:
        other = ", ".join(sorted(found ^ names))
        raise Unsupported(f"{type(module).__name__} differs from {family}'s in {other}")


def activation_of(function: Any, *allowed: Activation) -> Activation:
    """Which of the allowed activations a function is, by what it does: libraries wrap them in
    classes of their own. Unsupported if it is none.
    """
    near, far = torch.linspace(-8, 8, 33, dtype=torch.float32), (16.0, 64.0, 1000.0)
    x = torch.cat([near, torch.tensor([*far, *(-each for each in far)], dtype=torch.float32)])
    for each in allowed:
        if torch.allclose(function(x), _FUNCTIONS[each][1](x), rtol=1e-5, atol=1e-6):
            return each
    names = " or ".join(_FUNCTIONS[each][0] for each in allowed)
    raise Unsupported(f"its activation is {type(function).__name__}, not {names}")


_FUNCTIONS: dict[Activation, tuple[str, Callable[[Tensor], Tensor]]] = {
    Activation.SILU_GATE: ("SiLU", functional.silu),
    Activation.RELU: ("ReLU", functional.relu),
    Activation.GELU: ("GELU", functional.gelu),
    Activation.GELU_TANH: ("GELU by its tanh", partial(functional.gelu, approximate="tanh")),
}


def rotations(decoder: Any) -> Callable[[Step, int], None]:
    """Description.set_positions of a decoder with a module of rotary positions."""
    kind = getattr(decoder.rotary_emb, "rope_type", "default")
    if kind in BY_LENGTH:
        raise Unsupported(f"its rotations ({kind}) depend on the length of the text")

    def rotate(step: Step, positions: int) -> None:
        own = deepcopy(decoder.rotary_emb)  # the model's keeps nothing of this call
        places, like = torch.arange(positions)[None], torch.empty((1, 1, 1), dtype=torch.float32)
        cosine, sine = (part[0].float().contiguous() for part in own(like, places))
        if cosine.shape[1] > step.width:
            raise Unsupported(f"it rotates {cosine.shape[1]} numbers of heads of {step.width}")
        step.set_rotations(cosine, sine)

    return rotate


def same_of_all(values: Sequence[_T], what: str) -> _T:
    """What all layers have; Unsupported if they differ, or there is none."""
    if not values:
        raise Unsupported("it has no layers")
    if len(set(values)) > 1:
        raise Unsupported(f"its layers differ in {what}")
    return values[0]


def _epsilon(module: Any) -> float:
    return float(module.eps if isinstance(module, nn.LayerNorm) else module.variance_epsilon)


def _require_matrix(linear: Any) -> None:
    if isinstance(linear, QuantLinear):
        if not linear.tiled:
            raise Unsupported(f"a layer is multiplied by {linear.way}")
        if linear.input_operator is not None:
            raise Unsupported("a layer has an operator on its input")
    elif not isinstance(linear, nn.Linear):
        raise Unsupported(f"a layer is {type(linear).__name__}")
