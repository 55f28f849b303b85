"""GGUF files of llama.cpp, made into ordinary Hugging Face folders and written from quantized ones.

A GGUF is a whole model in one file (metadata, tokenizer, tensors in many types), not layers inside
a folder. `unpack` dequantizes its tensors with the package `gguf`; the folder is then read like any
other. `write`, for quant.checkpoint.formats.gguf, packs codes as they are.
"""
