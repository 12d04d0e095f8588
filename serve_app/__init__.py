"""parallel-sdxl: one prompt, N seeds, N GPUs, pictures streaming back while they form."""

__version__ = "0.1.0"
