"""Levels: the values that codes can stand for; each kind is a module that ends in LEVELS."""
