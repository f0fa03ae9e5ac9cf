"""GPTQ checkpoints (Frantar et al., 2022): weights of 4 or 8 bits, for models of either server.

`checkpoint` finds and describes a checkpoint, `linear` is the layer that holds its weights,
`kernels` multiplies with them, `transformers` puts such layers into a transformers model.
"""
