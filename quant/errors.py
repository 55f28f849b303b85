"""The errors of quant: each names the layer or file, the value and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SchemeError(ValueError):
    """A scheme that cannot exist, or a name that is none of a scheme."""


class QuantizationError(RuntimeError):
    """A model or a layer that cannot be quantized, stored or loaded as asked."""


class NonFiniteError(QuantizationError):
    """Weights, activations or Hessians that hold NaN or infinity."""


class SingularHessianError(QuantizationError):
    """A Hessian that is not positive definite even with the damping that was asked for."""


class CalibrationError(QuantizationError):
    """Calibration data that is missing, too short or unfit for the model."""


class ArtifactError(QuantizationError):
    """A quantized checkpoint that is corrupt, truncated or of an unknown format."""


class ModelStructureError(QuantizationError):
    """A model whose decoder blocks or linear layers cannot be found or replaced."""


@contextmanager
def failures_of(who: str) -> Iterator[None]:
    """Name the part, and the layer, whose code raises inside: QuantizationError.

    Memory that ran out is none of its faults, and our own sentences say enough.
    """
    try:
        yield
    except (QuantizationError, SchemeError, MemoryError):
        raise
    except Exception as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise
        said = " ".join(str(error).split())[:300]
        raise QuantizationError(
            f"{who} ended in {type(error).__name__}{f' ({said})' if said else ''}; correct its "
            "module, or leave it out."
        ) from error
