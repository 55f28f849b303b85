"""Audit: what a quantized checkpoint's codes show of how they were made, layer by layer."""
