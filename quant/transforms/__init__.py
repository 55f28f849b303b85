"""Transforms: changes of coordinates between layers that do not change the model's function."""
