"""Recommend a cell under limits: what fits, what is near enough, and what no test separates."""
