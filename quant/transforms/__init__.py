"""Transforms: changes of coordinates that keep a model's function, and roundings of inputs."""
