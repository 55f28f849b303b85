"""Transforms: changes of coordinates between layers that leave what the model computes alone."""
