"""The errors of quant: each names the layer or file, the value and the next step."""

from __future__ import annotations


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
