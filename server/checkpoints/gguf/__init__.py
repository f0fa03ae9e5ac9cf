"""GGUF files (llama.cpp's) as checkpoints: header, configuration and tokenizer.

`server.quantization.gguf` reads the weights.
"""
