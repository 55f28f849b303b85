"""Kinds of levels, the values that a code may stand for: one file each, ending in LEVELS."""
