"""Errors that a user can fix: printed as one sentence with the next step, without a traceback.

Errors of quant (quant.errors, quant.scheme.SchemeError) follow the same rule.
"""

from __future__ import annotations


class BitsweepError(RuntimeError):
    """Base of the errors that the command line prints as a sentence."""


class ConfigError(BitsweepError):
    """A wrong key, value, combination or missing file, found before anything is loaded."""


class MissingData(ConfigError):
    """A text, or the data of a task, that is not here and cannot be brought.

    Cells of an experiment that regenerates published tables have no figures without it; any other
    run is refused.
    """


class ModelError(BitsweepError):
    """A model or tokenizer that cannot be found, downloaded or read."""


class Unavailable(ModelError):
    """A model that cannot be had here: of several cells, those without it have no figures."""


class StoreError(BitsweepError):
    """Results that cannot be written, or that are damaged."""
