"""GGUF files of llama.cpp, made into ordinary Hugging Face folders.

A GGUF is a whole model in one file (metadata, tokenizer, tensors in many types), not layers inside
a folder, so it is no module of quant.checkpoint.formats. Its tensors are dequantized by the package
`gguf`; the folder is then read like any other.
"""
