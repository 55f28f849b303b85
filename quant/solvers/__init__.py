"""Solvers: pure functions from a weight (and its Hessian) to a quantized weight."""
