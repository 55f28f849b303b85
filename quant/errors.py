"""Exceptions of quant: each message names the layer or file, the value and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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


class NotEnoughMemory(QuantizationError):
    """A model does not fit on its device, or its devices; the message has the figures."""


class ModelStructureError(QuantizationError):
    """The decoder blocks or linear layers of a model cannot be found or replaced."""


@contextmanager
def failures_of(who: str) -> Iterator[None]:
    """Convert exceptions of a part's code to a QuantizationError that names the part (`who`).

    Out-of-memory errors and Bitsweep's own errors pass unchanged.
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
