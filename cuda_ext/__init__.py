"""Operators on packed low-bit weights for plain torch; import modules (layout, ops, reference)."""
