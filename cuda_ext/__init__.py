"""Packed low-bit operators on plain torch; import the module you need (layout, ops, reference)."""
