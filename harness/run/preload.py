"""Imported once by the server that cells are forked from; see harness.run.process.

Imports only. Anything that starts threads, opens files or touches a GPU would be inherited by every
cell in a broken state.
"""

from __future__ import annotations

import logging
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

logging.getLogger("transformers").setLevel(logging.ERROR)

# Lazily loaded parts of transformers that every cell would otherwise import for itself.
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: E402, F401
from transformers.models.opt import modeling_opt  # noqa: E402, F401
