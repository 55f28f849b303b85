"""Levels of E2M1, the FP4 of NVFP4 and MXFP4, and the layers that compressed-tensors stores."""
