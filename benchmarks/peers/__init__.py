"""Programs that people would use instead, measured beside this one; each in its own environment."""
