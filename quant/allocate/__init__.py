"""Choosing a scheme for every layer: sensitivities, and the best choice under a budget."""
