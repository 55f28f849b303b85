"""Paired comparisons: is the difference of two rows on the same windows or documents real?"""
