"""Quantize block by block: load, collect Hessians, solve, pack, write, free."""
