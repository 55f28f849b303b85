"""`bitsweep audit`: a checkpoint held against its base, as table, record and page."""
