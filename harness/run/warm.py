"""Last import of the fork server (harness.run.process): fills caches that all cells share.

They hold facts of the machine, versions, the commit, and the patterns by which transformers renames
stored tensors (about a thousand, compiled). Starts no thread and touches no GPU, as in
harness.run.preload.
"""

from __future__ import annotations

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from harness.records.environment import environment
from quant.checkpoint.partial import code_hash

environment()
code_hash()
get_checkpoint_conversion_mapping("")  # any argument builds the table of all models

# Garbage collection writes to every object, so a cell would copy the memory that it shares with the
# server: 0.25 s of CPU time measured, against 3 ms with frozen objects.
gc.collect()
gc.freeze()
