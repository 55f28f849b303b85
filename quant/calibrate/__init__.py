"""The block-by-block stream: load, collect, solve, pack, write, free."""
