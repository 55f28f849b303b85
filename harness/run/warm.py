"""Imported last by the server that cells are forked from; see harness.run.process.

What every cell would otherwise find out for itself is found out once: the machine, the versions and
the commit of what was imported, and how transformers renames stored tensors (it compiles a thousand
patterns for that). Nothing here starts a thread or touches a GPU: see harness.run.preload.
"""

from __future__ import annotations

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from harness.records.environment import environment
from quant.checkpoint.partial import code_hash

environment()
code_hash()
get_checkpoint_conversion_mapping("")  # of no model; the table is made of all of them

# A collection writes to every object that it looks at, and a cell would copy all the memory that
# it shares with the server: measured 0.25 s of the processor, against 3 ms for objects set aside.
gc.collect()
gc.freeze()
