"""Checkpoint formats: every module except base is one, and ends with FORMAT = Format(...)."""
