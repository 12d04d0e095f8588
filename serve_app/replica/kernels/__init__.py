"""Kernels of our own, for what torch has none as fast: 8-bit floats on Hopper GPUs.

`fp8.py` has them as torch operators, each with a plain reference beside it; `geglu.py` and `conv.py` are what runs on
the GPU.
"""
