"""Imports of the fork server (harness.run.process), shared by all cells.

Imports only: threads, open files and CUDA contexts would be broken in the forked processes.
"""

from __future__ import annotations

import gc
import logging
import os

gc.disable()  # all that is imported stays: walking it again and again is an eighth of the imports

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

logging.getLogger("transformers").setLevel(logging.ERROR)

# Lazily loaded modules of transformers that every cell would otherwise import again.
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: E402, F401
from transformers.models.opt import modeling_opt  # noqa: E402, F401

gc.freeze()  # the collections of later imports do not walk it either
gc.enable()
