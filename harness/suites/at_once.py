"""How much of a window is computed at a time: read by suites, and by their memory plans."""

from __future__ import annotations

# Positions that are compared at a time, and the logits of them: 32 MiB in float32. glibc maps
# blocks from 32 MiB on by themselves; its heap would be left in pieces by smaller ones (1.1 GB were
# taken where 300 MB were needed).
POSITIONS_AT_ONCE = 512
LOGITS_AT_ONCE = 2**23
# Logits that are compared at a time on a processor: 8 MiB in float64. Larger blocks leave its cache
# and are mapped anew by glibc; comparing takes three times as long then.
CACHED_LOGITS = 2**20
WHOLE_BYTES = 2**26  # logits of at most this size are computed as a whole
