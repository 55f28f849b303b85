"""Launchers: how the workers of a sweep come to run on more than this process's machine."""
