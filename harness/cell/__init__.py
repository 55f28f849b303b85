"""One cell: resolved from its configuration, keyed, planned."""
