"""GPTQ checkpoints (Frantar et al., 2022): weights of 4 or 8 bits, for models of either server.

`checkpoint` finds and describes a checkpoint, `linear` is the layer that holds its weights,
`kernels` multiplies with them. `server.quantization.formats.gptq` offers all of it to the servers.
"""
