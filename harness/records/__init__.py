"""Records: the figures of stages, stored under their keys."""
