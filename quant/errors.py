"""Exceptions of quant: each message names the layer or file, the value and the next step."""

from __future__ import annotations


class SchemeError(ValueError):
    """An impossible scheme, or a string that is not the name of a scheme."""


class QuantizationError(RuntimeError):
    """A model or layer cannot be quantized, stored or loaded as requested."""


class NonFiniteError(QuantizationError):
    """Weights, activations or a Hessian contain NaN or infinity."""


class SingularHessianError(QuantizationError):
    """A Hessian is not positive definite, even with the requested damping."""


class CalibrationError(QuantizationError):
    """Calibration data is missing, too short or unsuitable for the model."""


class ArtifactError(QuantizationError):
    """A quantized checkpoint is corrupt, truncated or in an unknown format."""


class ModelStructureError(QuantizationError):
    """The decoder blocks or linear layers of a model cannot be found or replaced."""
