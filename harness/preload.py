"""Imported once by the server that cells are forked from; see harness.worker.

Imports only. Anything that starts threads, opens files or touches a GPU would be inherited by every
cell in a broken state.
"""

from __future__ import annotations

import logging
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

logging.getLogger("transformers").setLevel(logging.ERROR)

import torch  # noqa: E402, F401
import transformers  # noqa: E402, F401
from transformers.models.auto import modeling_auto, tokenization_auto  # noqa: E402, F401

import harness.cell  # noqa: E402, F401
