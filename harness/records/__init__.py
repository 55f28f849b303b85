"""Records: what a stage found, kept under its key."""
