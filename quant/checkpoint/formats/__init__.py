"""Checkpoint formats: every module here but base is one, and ends with FORMAT = Format(...)."""
